# SPDX-License-Identifier: GPL-2.0-or-later
"""Orders to the monitor: those that a command refuses itself, and a late server, for which connect has the option."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
from host import NBD0, NBD1, pretend

from nbdattach.attached import state
from nbdattach.attached.state import Record
from nbdattach.errors import DeadlinePassed, DeviceInUse
from nbdattach.monitor import control, launch
from nbdattach.operations import handover, twice
from nbdattach.protocol.constants import NBD_FLAG_READ_ONLY
from nbdattach.protocol.target import parse_target


def test_a_late_server_is_a_matter_of_the_option_of_connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: object) -> NoReturn:
        raise DeadlinePassed("nbd://db1", 30, "connecting")

    pretend(tmp_path, monkeypatch).attach()
    monkeypatch.setattr(launch, "ensure_monitor", lambda: None)
    monkeypatch.setattr(control, "ask", late)
    for change in (handover.reconnect, handover.resize):
        with pytest.raises(DeadlinePassed) as caught:
            change(NBD0)
        assert caught.value.hint == "the --connect-timeout of connect sets how long to wait"


@pytest.mark.parametrize(
    ("target", "shared", "read_only", "asked"),
    [
        ("nbd://127.0.0.1/disk", False, False, False),
        ("nbd://127.0.0.1/disk", True, False, True),
        ("nbd://127.0.0.1/disk", False, True, True),
        ("nbd://127.0.0.1/root", False, False, True),
        (None, False, False, True),
    ],
)
def test_a_device_does_not_move_to_what_another_one_has_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str | None, shared: bool, read_only: bool, asked: bool
) -> None:
    """The refusal of connect, and its exit code. While the monitor moves it, no other command attaches that export."""
    host = pretend(tmp_path, monkeypatch)
    for device, server in ((NBD0, "db1"), (NBD1, "localhost")):
        host.attach(device, tag=server)
        uri = f"nbd://{server}/disk"
        flags = NBD_FLAG_READ_ONLY if read_only and device == NBD0 else 0
        record = Record(server, uri, "disk", "netlink", 1, "2026-01-02T03:04:05Z", 4711, address="::1", flags=flags)
        state.save(device, record)
        (host.sys / "block" / device.name / "ro").write_text("1\n")  # as a disconnect marks it that may yet fail
    named = parse_target(target) if target else None
    requests: list[tuple[str, list[bool]]] = []

    def ask(request: control.Request) -> str:
        names = twice.Wanted(named, named.export, None).names if named else []
        requests.append((request.device, [locked(f"\0{name}") for name in names]))
        return "nbd://there/disk"

    monkeypatch.setattr(launch, "ensure_monitor", lambda: None)
    monkeypatch.setattr(control, "ask", ask)
    if asked:
        assert handover.reconnect(NBD0, named, shared=shared) == "nbd://there/disk"
        assert requests == [("nbd0", [not (shared or read_only)] * bool(named))]
        return
    with pytest.raises(DeviceInUse) as caught:
        handover.reconnect(NBD0, named)
    assert not requests
    assert caught.value.exit_code == 7
    cause = "attached read-write at /dev/nbd1 already; two file systems that write to one disk destroy it"
    assert str(caught.value) == f"{target}: {cause}"


def locked(tag: str) -> bool:
    """Whether another command would have to wait for this tag."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "_LOCK_SECONDS", 0.0)
        patch.setattr(state, "_LOOK_SECONDS", 0.0)
        try:
            with state.tag_lock(tag):
                return False
        except DeviceInUse:
            return True
