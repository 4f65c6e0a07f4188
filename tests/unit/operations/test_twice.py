# SPDX-License-Identifier: GPL-2.0-or-later
"""One export is attached for writing at one device only, by whatever name its server is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from host import NBD0, Host, pretend

from nbdattach.attached import state
from nbdattach.attached.state import Record
from nbdattach.errors import DeviceInUse
from nbdattach.operations import twice
from nbdattach.protocol.target import Target, parse_target

RECORD = Record("db", "nbd://db1/disk", "disk", "netlink", 1, "2026-01-02T03:04:05Z", 4711, address="10.0.0.1")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """nbd0 holds RECORD."""
    made = pretend(tmp_path, monkeypatch)
    made.attach(NBD0, tag="db")
    state.save(NBD0, RECORD)
    (made.sys / "block/nbd0/ro").write_text("0\n")
    return made


def refused(target: Target, address: str | None) -> bool:
    try:
        twice.refuse(target, target.export, address)
    except DeviceInUse as error:
        assert error.exit_code == 7
        return True
    return False


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("uri", "address", "same"),
    [
        ("nbd://db1/disk", None, True),
        ("nbds://db1/disk", "10.0.0.1", True),
        ("nbd://10.0.0.1/disk", "10.0.0.1", True),
        ("nbd://alias/disk", "10.0.0.1", True),
        ("nbd://alias/disk", "10.0.0.2", False),
        ("nbd://alias/disk", None, False),
        ("nbd://db1/root", "10.0.0.1", False),
        ("nbd://db1:10810/disk", "10.0.0.1", False),
        ("nbd+unix:///disk?socket=/run/s", None, False),
    ],
)
def test_the_server_is_known_by_its_name_or_its_address(uri: str, address: str | None, same: bool) -> None:
    assert refused(parse_target(uri, None), address) is same


@pytest.mark.usefixtures("host")
def test_the_refusal_names_the_device_and_the_ways_out() -> None:
    with pytest.raises(DeviceInUse) as caught:
        twice.refuse(parse_target("nbd://db1/disk", None), "disk", None)
    cause = "attached read-write at /dev/nbd0 already; two file systems that write to one disk destroy it"
    assert str(caught.value) == f"nbd://db1/disk: {cause}"
    hint = "use /dev/nbd0, or attach it with --read-only, or with --shared if its users know of each other"
    assert caught.value.hint == hint


def test_a_socket_is_known_by_its_place(host: Host, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "s")
    there = Target(socket=str(tmp_path / "s"), export="disk")
    state.save(NBD0, replace(RECORD, target=there.uri, address=None))
    assert refused(replace(there, socket=str(tmp_path / "link")), None)
    assert not refused(replace(there, socket=str(tmp_path / "other")), None)
    assert twice.name_of(there, "disk", None) == twice.name_of(
        replace(there, socket=str(tmp_path / "link")), "disk", None
    )
    assert host.files


def test_what_is_read_only_or_gone_or_at_another_server_now_is_no_obstacle(host: Host) -> None:
    target = parse_target("nbd://db1/disk", None)
    (host.sys / "block/nbd0/ro").write_text("1\n")
    assert not refused(target, None)
    (host.sys / "block/nbd0/ro").write_text("0\n")
    state.save(NBD0, replace(RECORD, using="nbd://db2/disk", address="10.0.0.2"))
    assert not refused(target, "10.0.0.1")
    assert refused(parse_target("nbd://db2/disk", None), None)
    (host.sys / "block/nbd0/pid").unlink()
    assert not refused(parse_target("nbd://db2/disk", None), None)
