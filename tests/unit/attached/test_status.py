# SPDX-License-Identifier: GPL-2.0-or-later
"""Status: the kernel's view, and the monitor's additions to it. On a /run and a /sys of our own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from attachments import PLAIN
from host import NBD0, Host, pretend
from loopback import PATIENCE, eventually

from nbdattach.attached import foreign_queue, state, status
from nbdattach.attached.state import Record, Trouble
from nbdattach.attached.status import ImageStatus, ServerStatus, status_of
from nbdattach.errors import NotAttached
from nbdattach.host import copies, procfs
from nbdattach.host.copies import Question
from nbdattach.kernel import sysfs
from nbdattach.server_of_ours import Image, OwnServer

WATCHED = Record("mine", "nbd://db1/disk", "disk", "netlink", 2, "2026-01-02T03:04:05Z", 4711, reconnect=True)
AWAY = Trouble("reconnecting", "2026-01-02T03:05:00Z", "2026-01-02T03:05:04Z", "nbd://db1/disk: no")
LOST = replace(AWAY, state="lost", next_try=None)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = pretend(tmp_path, monkeypatch)
    made.attach()
    return made


@pytest.fixture
def monitored(host: Host) -> Iterator[None]:
    """A monitor runs and holds its lock."""
    with state.monitor_lock():
        yield


@pytest.mark.usefixtures("monitored")
def test_an_attachment_by_netlink_needs_no_process() -> None:
    state.save(NBD0, WATCHED)
    assert status_of(NBD0) == replace(PLAIN, tag="mine", size=1 << 20, connections=2)


@pytest.mark.usefixtures("monitored")
@pytest.mark.parametrize("trouble", [AWAY, LOST])
def test_the_monitor_says_what_is_not_connected(trouble: Trouble) -> None:
    state.save(NBD0, WATCHED)
    state.save_trouble(NBD0, trouble)
    found = status_of(NBD0)
    assert found.state == trouble.state
    assert found.trouble == {"since": trouble.since, "next_try": trouble.next_try, "error": trouble.error}


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("trouble", [AWAY, LOST])
def test_the_last_words_of_a_monitor_that_is_gone_are_told_as_such(trouble: Trouble) -> None:
    state.save(NBD0, WATCHED)
    state.save_trouble(NBD0, trouble)
    found = status_of(NBD0)
    assert found.state == trouble.state
    assert found.trouble == {"since": AWAY.since, "next_try": None, "error": "the monitor is not running"}


@pytest.mark.usefixtures("monitored")
@pytest.mark.parametrize("record", [replace(WATCHED, reconnect=False), replace(WATCHED, kernel_pid=4712), None])
def test_trouble_of_what_nobody_watches_is_old(host: Host, record: Record | None) -> None:
    if record:
        state.save(NBD0, record)
    state.save_trouble(NBD0, LOST)
    assert (status_of(NBD0).state, status_of(NBD0).trouble) == ("connected", None)


@pytest.mark.usefixtures("host")
def test_what_another_program_attached_by_netlink_has_its_identifier() -> None:
    found = status_of(NBD0)
    assert (found.tag, found.backend, found.target, found.pid) == ("mine", "netlink", None, None)


@pytest.mark.usefixtures("host")
def test_no_file_of_the_queue_is_read_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """If another program writes to one while the server is away, the kernel lets nobody read there, nor end."""
    state.save(NBD0, replace(WATCHED, block_size=4096))
    read = sysfs._read
    monkeypatch.setattr(sysfs, "_read", lambda path: read(path) if "/queue/" not in path else pytest.fail(path))
    assert status_of(NBD0).block_size == 4096


def test_what_was_detached_and_is_kept_by_a_program_is_lost_until_another_attachment_is_there(host: Host) -> None:
    """The kernel keeps its pid and size."""
    state.note_end(NBD0, (4711, "mine", None))
    found = status_of(NBD0)
    assert (found.state, found.trouble and found.trouble["error"]) == (
        "lost",
        "detached; the kernel frees it when its last user releases it",
    )
    (host.sys / "block/nbd0/pid").write_text("4712\n")
    assert (status_of(NBD0).state, status_of(NBD0).trouble) == ("connected", None)
    (host.sys / "block/nbd0/pid").write_text("4711\n")
    state.forget(NBD0)
    assert status_of(NBD0).state == "connected"


@pytest.mark.parametrize("record", [replace(WATCHED, kernel_pid=4712), None])
def test_what_was_attached_before_the_end_of_another_was_noted_is_connected(host: Host, record: Record | None) -> None:
    (host.sys / "block/nbd0/pid").write_text("4712\n")
    if record:
        state.save(NBD0, record)
    state.note_end(NBD0, (4711, "mine", None))
    assert (status_of(NBD0).state, state.end_of(NBD0)) == ("connected", None)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"identity": 7}', '{"identity": []}'])
def test_a_spoilt_note_of_an_end_is_none(host: Host, text: str) -> None:
    state.make_run()
    (host.run / "nbd0.json.ended").write_text(text)
    assert status_of(NBD0).state == "connected"


@pytest.mark.parametrize(("netlink", "there"), [(True, "unknown"), (False, "connected")])
def test_a_state_that_only_root_can_see_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, netlink: bool, there: str
) -> None:
    """The monitor's report and the note of an end are in files; by ioctl, the process that serves the device tells."""
    host = pretend(tmp_path, monkeypatch)
    host.attach(pid=os.getpid(), netlink=netlink)
    monkeypatch.setattr(status, "has_open", lambda *_: True)
    assert status_of(NBD0).state == "connected"  # without a folder, there are no records
    state.make_run()
    assert status_of(NBD0).state == "connected"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert status_of(NBD0).state == there


def test_what_is_not_attached_is_said(host: Host) -> None:
    (host.sys / "block/nbd0/pid").unlink()
    with pytest.raises(NotAttached):
        status_of(NBD0)


# -- servers of our own ------------------------------------------------------------------------------------------------


def with_server(host: Host, image: Image | None = None, unit: str | None = None) -> Record:
    server = OwnServer("/d.img", str(host.run), ("/usr/bin/qemu-nbd", "/d.img"), unit, image)
    return replace(WATCHED, reconnect=False, server=server)


def test_status_tells_the_server_that_was_started_for_the_device(host: Host) -> None:
    host.write("state", json.dumps({"pid": os.getpid(), "started": procfs.started(os.getpid()), "restarts": 3}))
    state.save(NBD0, with_server(host, Image("/d.img", "qcow2", "1:2", ("/base",)), "nbdattach-server-1.service"))
    found = status_of(NBD0)
    assert found.server == ServerStatus(
        command=["/usr/bin/qemu-nbd", "/d.img"],
        pid=os.getpid(),
        unit="nbdattach-server-1.service",
        restarts=3,
    )
    assert found.image == ImageStatus(path="/d.img", format="qcow2", backing=["/base"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', None])
def test_status_does_without_the_state_of_a_server(host: Host, text: str | None) -> None:
    if text is not None:
        host.write("state", text)
    state.save(NBD0, with_server(host))
    found = status_of(NBD0).server
    assert found == ServerStatus(["/usr/bin/qemu-nbd", "/d.img"], pid=None, unit=None, restarts=0)
    assert status_of(NBD0).image is None


def test_record_of_an_older_release_has_no_server(host: Host) -> None:
    content = asdict(WATCHED)
    del content["server"]
    host.write("nbd0.json", json.dumps(content))
    found = status_of(NBD0)
    assert (found.tag, found.server, found.image) == ("mine", None, None)


@pytest.mark.parametrize(
    "server",
    [5, "x", [], {}, {"name": "/d.img"}, {"name": "/d", "folder": "/f", "command": "qemu-nbd"},
     {"name": "/d", "folder": "/f", "command": ["q"], "image": {"path": 5}}],
)  # fmt: skip
def test_record_with_a_broken_server_is_none(host: Host, server: object) -> None:
    """The device is shown as that of another program."""
    host.write("nbd0.json", json.dumps({**asdict(WATCHED), "server": server}))
    found = status_of(NBD0)
    assert (found.state, found.tag, found.target, found.server) == ("connected", "mine", None, None)


def test_server_survives_the_record(host: Host) -> None:
    record = with_server(host, Image("/d\udcff.img", "raw", "1:2", ("/a", "/b"), snapshot=True), "u.service")
    state.save(NBD0, record)
    assert state.load(NBD0) == record


def test_the_block_size_of_a_device_of_another_program_is_not_waited_for(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel shows nothing of the queue while a change of it waits for a server; here, the file is a pipe."""
    monkeypatch.setattr(foreign_queue, "_A_MOMENT", 0.2)
    size = host.sys / "block/nbd0/queue/logical_block_size"
    size.parent.mkdir()
    os.mkfifo(size)
    assert status_of(NBD0).block_size is None
    monkeypatch.setattr(foreign_queue, "_A_MOMENT", PATIENCE)
    left_behind = copies._unanswered[NBD0]
    monkeypatch.setattr(Question, "hangs", True)
    assert status_of(NBD0).block_size is None
    assert copies._unanswered[NBD0] is left_behind
    monkeypatch.undo()
    eventually(lambda: not left_behind.hangs)
    size.unlink()
    size.write_text("4096\n")
    host_again = (state, "RUN", str(host.run)), (sysfs, "SYS", str(host.sys))
    for module, name, value in host_again:
        monkeypatch.setattr(module, name, value)
    assert status_of(NBD0).block_size == 4096
