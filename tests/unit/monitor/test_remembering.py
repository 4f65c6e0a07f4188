# SPDX-License-Identifier: GPL-2.0-or-later
"""When the monitor looks at an attached disk, what it keeps, and what it says of a new connection."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from host import NBD0, Host, pretend

from nbdattach.attached import memory, state
from nbdattach.attached.state import Record
from nbdattach.connection.client import Connection
from nbdattach.deadline import Deadline
from nbdattach.errors import ConnectionLost, NbdattachError, Refused
from nbdattach.host.blocking import Unanswered
from nbdattach.kernel.sysfs import Kernel
from nbdattach.monitor import remembering
from nbdattach.monitor.access import Access
from nbdattach.monitor.places import Place, in_use
from nbdattach.monitor.recorded import Recorded
from nbdattach.monitor.remembering import Remembering
from nbdattach.protocol.export import Export
from nbdattach.protocol.steps import Steps, T
from nbdattach.protocol.target import target_of

SIZE = 1 << 20
UUID = 104
RECORD = Record("mine", "nbd://db1", "", "netlink", 1, "2026-01-02T03:04:05Z", 4711, size=SIZE)


def ext4(uuid: bytes, noise: int = 1) -> bytes:
    """A disk with a superblock, and data everywhere else."""
    disk = bytearray(bytes([noise]) * SIZE)
    disk[:4608] = bytes(4608)
    disk[1024 + 56 : 1024 + 58] = b"\x53\xef"
    disk[1024 + UUID : 1024 + UUID + 16] = uuid
    return bytes(disk)


A, B = ext4(b"A" * 16), ext4(b"B" * 16)
B_ELSEWHERE = ext4(b"B" * 16, noise=2)


class Disk:
    """The attached device with its monitor's part; `content` is what a look at it reads."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host: Host = pretend(tmp_path, monkeypatch)
        self.host.attach()
        self.node = tmp_path / "node"
        self.node.touch()
        self.now = 1000.0
        self.content, self.looks = A, 0
        self.log: list[str] = []
        self.while_reading: Callable[[], object] = lambda: None
        self.killed = threading.Event()
        self._written = 0
        self.write(0)
        state.save(NBD0, RECORD)
        monkeypatch.setattr(Kernel, "stack", [str(self.node)])
        monkeypatch.setattr(remembering, "Reading", lambda _: Reading(self))
        self.used = True
        for module in (remembering, memory):
            monkeypatch.setattr(module, "is_used", lambda _: self.used)
        monkeypatch.setattr(remembering, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.access = Access(lambda: True)
        self.remembering = self.watched()

    def watched(self) -> Remembering:

        def log(line: str, *_: object) -> None:
            self.log.append(line)

        return Remembering(NBD0, Recorded(NBD0, RECORD, self.access, log), self.access, log)

    def write(self, sectors: int = 8) -> None:
        self._written += sectors
        (self.host.sys / "block/nbd0/stat").write_text(f"1 0 8 0 2 0 {self._written} 0 0 0 0 0 0 0 0 0 0")
        (self.host.sys / "block/nbd0/inflight").write_text("0 0")

    def touch(self) -> None:
        self.node.write_text("written")
        self.node.touch()

    def tick(self, seconds: float = 1.0) -> bool:
        """Whether it looked."""
        self.now += seconds
        before = self.looks
        self.remembering.tick()
        for thread in threading.enumerate():
            if thread.name == "look":
                thread.join(10)
        return self.looks > before

    @property
    def known(self) -> str | None:
        """The UUID that is remembered in the file."""
        found = memory.load(NBD0)
        return found.content.marks[0].identity[:2] if found else None


class Reading:
    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        disk.looks += 1
        self.ended = False

    def read(self, ranges: Sequence[tuple[int, int]], _: Deadline) -> list[bytes]:
        self.disk.while_reading()
        return [self.disk.content[offset : offset + length] for offset, length in ranges]

    def kill(self, _: float) -> None:
        self.ended = True
        self.disk.killed.set()

    def close(self) -> None:
        pass


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path, monkeypatch)


def test_an_attachment_without_memory_is_looked_at_once(disk: Disk) -> None:
    assert disk.tick()
    assert disk.known == "41"
    assert not any(disk.tick(100) for _ in range(3))


def test_a_write_is_followed_by_a_look_later_and_later(disk: Disk) -> None:
    disk.tick()
    times = []
    for second in range(200):
        disk.write()
        if disk.tick():
            times.append(second)
    assert [after - before for before, after in itertools.pairwise(times)] == [2, 4, 8, 16, 32, 60, 60]
    for _ in range(300):
        disk.tick()
    disk.write()
    assert disk.tick()  # after a quiet time at once


def test_a_program_that_writes_to_the_node_is_followed_by_a_look_at_once(disk: Disk) -> None:
    disk.tick()
    for content, uuid in ((B, "42"), (A, "41"), (B, "42")):
        disk.touch()
        disk.content = content
        assert disk.tick(1.0)
        assert disk.known == uuid


def test_a_program_that_writes_all_the_time_is_followed_less_often(disk: Disk) -> None:
    """A virtual machine has the device open."""
    disk.tick()
    times = []
    for second in range(60):
        disk.touch()
        if disk.tick():
            times.append(second)
    assert [after - before for before, after in itertools.pairwise(times)][:6] == [2, 4, 8, 10, 10, 10]


def test_a_look_is_made_before_the_device_is_moved(disk: Disk) -> None:
    disk.tick()
    disk.write()
    disk.content = B
    disk.remembering.look_now()
    assert disk.known == "42"


def test_a_look_that_fails_is_repeated(disk: Disk) -> None:
    disk.tick()

    def fails() -> None:
        raise Unanswered

    disk.while_reading = fails
    disk.touch()
    assert disk.tick()
    assert disk.known == "41"
    disk.while_reading, disk.content = lambda: None, B
    assert disk.tick(2.0)
    assert disk.known == "42"


def test_nothing_is_read_while_requests_are_stuck(disk: Disk) -> None:
    disk.tick()
    disk.write()
    (disk.host.sys / "block/nbd0/inflight").write_text("0 1")
    disk.tick()  # sees that requests were done
    disk.touch()
    assert not any(disk.tick(10) for _ in range(3))
    disk.write()
    assert disk.tick(10)


def test_nothing_is_read_for_a_while_after_trouble_with_a_connection(disk: Disk) -> None:
    disk.tick()
    disk.remembering.give_up()
    disk.touch()
    assert [disk.tick() for _ in range(10)] == [False] * 9 + [True]


def test_a_look_while_a_command_takes_the_device_is_dropped(disk: Disk) -> None:
    disk.tick()
    disk.while_reading, disk.content = disk.access.hold, B
    disk.touch()
    disk.tick()
    assert disk.known == "41"


def test_a_look_at_a_device_that_was_detached_leaves_no_file(disk: Disk) -> None:
    def detach() -> None:
        (disk.host.sys / "block/nbd0/pid").unlink()
        state.forget(NBD0)

    disk.while_reading = detach
    disk.tick()
    assert disk.host.files == []


def test_a_look_that_was_overtaken_by_trust_is_dropped(disk: Disk) -> None:
    disk.tick()
    disk.while_reading = disk.remembering.forget
    disk.touch()
    disk.tick()
    assert disk.known is None


def test_stop_ends_a_look(disk: Disk) -> None:
    disk.while_reading = lambda: disk.killed.wait(10)
    disk.now += 1
    disk.remembering.tick()
    while not disk.looks:
        time.sleep(0.01)
    disk.remembering.stop()
    assert disk.killed.is_set()


def test_a_full_run_costs_no_memory(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(memory, "save", full)
    disk.tick()
    refused(disk, B)


# -- new connections ---------------------------------------------------------------------------------------------------


def connection(content: bytes, error: NbdattachError | None = None) -> Connection:
    def run(steps: Steps[T]) -> T:
        if error:
            raise error
        found = [content[offset : offset + length] for offset, length in inspect.getgeneratorlocals(steps)["ranges"]]
        steps.close()
        return cast(T, found)

    stream = SimpleNamespace(run=run, uri="nbd://db1", require_nothing_left=lambda: None)
    export = Export("", len(content), 1, "newstyle-fixed")
    return cast(Connection, SimpleNamespace(stream=stream, export=export))


def require_same(disk: Disk, there: Connection, uri: str = "", address: str | None = None) -> None:
    """At the server in use, or at another one, or at another address."""
    record = disk.remembering._recorded.record
    place = Place(target_of(uri, None), address, elsewhere=True) if uri else in_use(record)
    disk.remembering.require_same(there, place)


def refused(disk: Disk, content: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        require_same(disk, connection(content))
    return caught.value


def test_nothing_is_asked_of_what_is_not_remembered(disk: Disk) -> None:
    require_same(disk, connection(B))


def test_another_disk_is_refused_with_the_way_to_accept_it(disk: Disk) -> None:
    disk.tick()
    require_same(disk, connection(A))
    error = refused(disk, B)
    assert "this is another disk: it has ext4 42424242-" in str(error)
    assert error.hint == "nbdattach reconnect --trust /dev/nbd0 accepts it, if it is the right one"
    disk.remembering.forget()
    require_same(disk, connection(B))


def test_the_next_monitor_remembers(disk: Disk) -> None:
    disk.tick()
    disk.remembering = disk.watched()
    refused(disk, B)


def test_what_the_watch_before_remembered_last_is_known(disk: Disk) -> None:
    """Both live for a moment."""
    after = disk.watched()
    disk.tick()
    disk.remembering = after
    require_same(disk, connection(A), "nbd://db2")
    refused(disk, B)


def test_what_a_program_has_just_made_is_accepted_unless_the_rest_is_another_disk(disk: Disk) -> None:
    disk.tick()
    disk.touch()
    disk.write()
    require_same(disk, connection(B))
    refused(disk, B_ELSEWHERE)


def test_a_server_that_cannot_read_is_not_taken(disk: Disk) -> None:
    disk.tick()
    with pytest.raises(Refused, match="is it the attached disk\\? reading"):
        require_same(disk, connection(A, Refused("nbd://db1", "reading 8 bytes at 0 failed", "log")))
    with pytest.raises(ConnectionLost):
        require_same(disk, connection(A, ConnectionLost("nbd://db1", "reading")))


def test_a_disk_that_has_shrunk_is_the_same_at_its_beginning(disk: Disk) -> None:
    disk.tick()
    require_same(disk, connection(A[: SIZE // 2]))
    refused(disk, B[: SIZE // 2])


def test_a_new_size_is_followed_by_a_look(disk: Disk) -> None:
    disk.tick()
    (disk.host.sys / "block/nbd0/size").write_text("4096\n")
    assert disk.tick(4.0)


def test_another_server_must_have_all_that_was_written_to_the_one_in_use(disk: Disk) -> None:
    with pytest.raises(Refused, match="nothing is known yet"):
        require_same(disk, connection(A), "nbd://db2")
    require_same(disk, connection(A), "nbd://db1")  # the same server at another address
    disk.tick()
    require_same(disk, connection(A), "nbd://db2")
    disk.remembering._recorded.record = dataclasses.replace(RECORD, using="nbd://db2")
    with pytest.raises(Refused, match="nothing is known yet"):
        require_same(disk, connection(A), "nbd://db1")
    assert disk.tick(4.0)
    require_same(disk, connection(A), "nbd://db1")


def test_what_a_program_may_have_made_is_no_reason_to_move_to_another_server(disk: Disk) -> None:
    disk.tick()
    disk.touch()
    disk.write()
    require_same(disk, connection(B))
    with pytest.raises(Refused, match="this is another disk"):
        require_same(disk, connection(B), "nbd://db2")


def moved(disk: Disk) -> None:
    """To db2, from db1, which is left."""
    disk.tick()
    disk.remembering.move()
    disk.remembering._recorded.record = dataclasses.replace(RECORD, using="nbd://db2", left=("nbd://db1",))


def test_a_server_that_was_left_is_as_good_as_before_while_nothing_is_written(disk: Disk) -> None:
    moved(disk)
    require_same(disk, connection(A), "nbd://db1")
    disk.remembering = disk.watched()  # after a restart of the monitor, too
    disk.remembering._recorded.record = dataclasses.replace(RECORD, using="nbd://db2", left=("nbd://db1",))
    require_same(disk, connection(A), "nbd://db1")


def test_a_server_that_was_left_must_show_what_was_written_since(disk: Disk) -> None:
    moved(disk)
    disk.write()
    with pytest.raises(Refused, match="nothing is known yet"):
        require_same(disk, connection(A), "nbd://db1")
    assert disk.tick(4.0)  # the first look there: the server that was left may have all of that
    with pytest.raises(Refused, match="nothing shows whether it has what was written"):
        require_same(disk, connection(A), "nbd://db1")
    require_same(disk, connection(A), "nbd://db3")  # it was not left
    changed = A[: SIZE // 2] + B_ELSEWHERE[SIZE // 2 :]
    disk.content = changed
    disk.write()
    assert disk.tick(4.0)
    with pytest.raises(Refused, match="it has not what was written since"):
        require_same(disk, connection(A), "nbd://db1")
    require_same(disk, connection(changed), "nbd://db1")


def test_a_server_that_was_left_may_show_what_was_written_since_the_user_trusted_another(disk: Disk) -> None:
    moved(disk)
    disk.remembering.forget()
    for noise in (2, 3):
        disk.content = A[: SIZE // 2] + ext4(b"A" * 16, noise)[SIZE // 2 :]
        disk.write()
        assert disk.tick(4.0)
    require_same(disk, connection(disk.content), "nbd://db1")
    refuses(disk, connection(A), "nbd://db1", "nothing shows")


def test_a_server_that_was_left_before_another_one_was_may_miss_more(disk: Disk) -> None:
    """Nothing was written after the last move, but after the one before."""
    moved(disk)
    disk.write()
    assert disk.tick(4.0)
    disk.write()  # which no look has seen
    left = ("nbd://db1", "nbd://db2")
    require_same(disk, connection(A), "nbd://db3")
    disk.remembering.move()
    disk.remembering._recorded.record = dataclasses.replace(RECORD, using="nbd://db3", left=left)
    refuses(disk, connection(A), "nbd://db1", "nothing is known yet")
    require_same(disk, connection(A), "nbd://db2")


def test_two_moves_hide_nothing(disk: Disk) -> None:
    """Of a disk without a file system."""
    disk.content = bytes([7]) * SIZE
    disk.tick()
    before, after = disk.content, disk.content[: SIZE // 2] + bytes([8]) * (SIZE // 2)
    disk.remembering.move()
    disk.remembering._recorded.record = dataclasses.replace(RECORD, using="nbd://db2", left=("nbd://db1",))
    disk.write()
    disk.content = after
    assert disk.tick(4.0)
    disk.remembering.move()
    left = ("nbd://db1", "nbd://db2")
    disk.remembering._recorded.record = dataclasses.replace(RECORD, using="nbd://db3", left=left)
    disk.write()
    assert disk.tick(4.0)
    refuses(disk, connection(before), "nbd://db1", "it has not what was written since")
    require_same(disk, connection(after), "nbd://db2")


def raw(*parts: int) -> bytes:
    """A disk without a file system, of quarters with that noise."""
    return b"".join(bytes([noise]) * (SIZE // 4) for noise in parts)


def test_the_server_that_was_left_last_is_held_against_what_it_had_then(disk: Disk) -> None:
    """The device went from db1 to db2 and back to db1, and a block was written at each."""
    disk.content = raw(1, 1, 1, 1)
    disk.tick()
    disk.remembering.move()
    disk.remembering._recorded.record = dataclasses.replace(RECORD, using="nbd://db2", left=("nbd://db1",))
    at_db2 = disk.content = raw(1, 1, 1, 2)
    disk.write()
    assert disk.tick(4.0)
    disk.remembering.move()
    disk.remembering._recorded.record = dataclasses.replace(RECORD, left=("nbd://db2",))
    for noise in (3, 4):
        disk.content = raw(1, 1, 1, noise)
        disk.write()
        assert disk.tick(8.0)
    refuses(disk, connection(at_db2), "nbd://db2", "it has not what was written since")


def test_after_trust_a_server_that_was_left_before_is_not_forgotten(disk: Disk) -> None:
    disk.content = raw(1, 1, 1, 1)
    moved(disk)
    disk.remembering.forget()
    disk.write()
    assert disk.tick(4.0)
    before, disk.content = disk.content, raw(1, 1, 1, 2)
    disk.write()
    assert disk.tick(8.0)
    refuses(disk, connection(before), "nbd://db1", "it has not what was written since")
    disk.remembering.move()
    left = ("nbd://db1", "nbd://db2")
    disk.remembering._recorded.record = dataclasses.replace(RECORD, using="nbd://db3", left=left)
    disk.write()
    assert disk.tick(8.0)
    refuses(disk, connection(before), "nbd://db1", "it has not what was written since")


def refuses(disk: Disk, there: Connection, uri: str, cause: str, address: str | None = None) -> Refused:
    with pytest.raises(Refused, match=cause) as caught:
        require_same(disk, there, uri, address)
    return caught.value


def test_the_way_to_accept_it_leads_to_the_very_place(disk: Disk) -> None:
    disk.tick()
    error = refuses(disk, connection(B), "nbd://db1", "this is another disk", "192.0.2.7")
    assert error.hint.startswith("nbdattach reconnect --trust /dev/nbd0 nbd://192.0.2.7 accepts it")


def test_a_file_system_that_was_mounted_after_the_look_makes_no_older_state_right(disk: Disk) -> None:
    disk.used = False
    disk.content = written_to(A, 20)
    disk.tick()
    disk.write()
    for used in (False, True):
        disk.used = used
        with pytest.raises(Refused, match="older state"):
            require_same(disk, connection(written_to(A, 10)))
    with pytest.raises(Refused, match="this is another disk"):
        require_same(disk, connection(B))
    disk.used = False
    require_same(disk, connection(B))  # an iSCSI target may have written it


def written_to(content: bytes, kbytes: int) -> bytes:
    """With that many kbytes written, as the superblock counts them."""
    return content[: 1024 + 376] + kbytes.to_bytes(8, "little") + content[1024 + 384 :]


def test_looks_that_hang_do_not_pile_up(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    over, looks = threading.Event(), []

    def hangs(_: object) -> bool:
        looks.append(1)
        return over.wait(60)

    monkeypatch.setattr(remembering, "is_used", hangs)
    for _ in range(20):
        disk.write()
        disk.now += 100
        disk.remembering.tick()
    assert len(looks) == 1
    over.set()
    assert disk.tick(100) or disk.tick(100)


def test_with_other_servers_looks_follow_writes_soon(disk: Disk) -> None:
    disk.remembering._recorded.record = dataclasses.replace(RECORD, also=("nbd://db2",))
    looks = 0
    for _ in range(60):
        disk.write()
        looks += disk.tick()
    assert looks >= 28


def test_other_hosts_may_write_to_a_read_only_device(disk: Disk) -> None:
    disk.tick()
    stat = disk.host.sys / "block/nbd0/stat"
    stat.write_text(stat.read_text().replace(" 0\n", "").rsplit(" ", 2)[0] + " 9 0")
    changed = A[: SIZE // 2] + B_ELSEWHERE[SIZE // 2 :]
    refused(disk, changed)
    (disk.host.sys / "block/nbd0/ro").write_text("1\n")
    require_same(disk, connection(changed))
