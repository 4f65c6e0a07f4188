# SPDX-License-Identifier: GPL-2.0-or-later
"""What is remembered of a disk's content: for one attachment only, whole or not at all, and how out of date it is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from host import NBD0, Host, pretend

from nbdattach.attached import memory, state
from nbdattach.attached.memory import Memory, Moment
from nbdattach.content.marks import Content, Mark, Sample, Witness
from nbdattach.content.same_disk import Since
from nbdattach.kernel.sysfs import Kernel

MARK = Mark("ext4", 0, "a-uuid", {"journal": (1 << 64) - 1}, Witness(4096, 7))
CONTENT = Content(1 << 20, (MARK,), (Sample(0, "12"), Sample(512, "")))
STAT = "1 0 8 0 2 0 {written} 0 0 0 0 0 0 {discarded} 0 {flushes} 0"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = pretend(tmp_path, monkeypatch)
    made.attach()
    (made.sys / "block/nbd0/queue").mkdir()
    at(made)
    monkeypatch.setattr(Kernel, "stack", [str(tmp_path / "node")])
    (tmp_path / "node").touch()
    return made


def at(host: Host, written: int = 0, discarded: int = 0, flushes: int = 0, pending: int = 0) -> None:
    """What the kernel has counted."""
    (host.sys / "block/nbd0/stat").write_text(STAT.format(written=written, discarded=discarded, flushes=flushes))
    (host.sys / "block/nbd0/inflight").write_text(f"0 {pending}")


def now() -> Memory:
    return Memory(memory.attachment_of(NBD0), CONTENT, memory.moment_of(NBD0))


def test_is_found_again(host: Host) -> None:
    memory.save(NBD0, now())
    found = memory.load(NBD0)
    assert found is not None
    assert (found.content, found.attachment) == (CONTENT, memory.attachment_of(NBD0))
    assert os.stat(host.run / "nbd0.json.content").st_mode & 0o777 == 0o600


def test_is_found_again_though_the_disk_has_many_file_systems(host: Host) -> None:
    """The parser of state files takes so many brackets only that are in each other."""
    many = replace(CONTENT, marks=tuple(replace(MARK, at=at) for at in range(17)))
    memory.save(NBD0, replace(now(), content=many, moved=many))
    found = memory.load(NBD0)
    assert found is not None
    assert (found.content, found.moved) == (many, many)


def test_is_of_one_attachment_only(host: Host) -> None:
    memory.save(NBD0, now())
    (host.sys / "block/nbd0/pid").write_text("4712\n")
    assert memory.load(NBD0) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"attachment": 1, "content": {}, "moment": {}}', '{"attachment": "[4711]"}']
)
def test_a_broken_file_is_no_memory(host: Host, text: str) -> None:
    host.write("nbd0.json.content", text)
    assert memory.load(NBD0) is None


def test_goes_with_the_other_files(host: Host) -> None:
    memory.save(NBD0, now())
    host.write("nbd0.json.content.new", "half")
    state.forget(NBD0)
    assert host.files == []


@pytest.mark.parametrize("changes", [{"written": 1}, {"discarded": 1}])
def test_what_was_written_is_counted(host: Host, changes: dict[str, int]) -> None:
    before = now()
    at(host, **changes)
    assert before.moment.is_before_changes(memory.moment_of(NBD0))
    assert before.since(NBD0, by_others=False) == Since(512, by_program=False)


def test_a_flush_is_no_change_but_proves_that_nothing_was_lost(host: Host) -> None:
    before = now()
    assert before.since(NBD0, by_others=False) == Since(0, by_program=False)
    at(host, flushes=1)
    assert not before.moment.is_before_changes(memory.moment_of(NBD0))
    assert before.since(NBD0, by_others=False) == Since(0, by_program=False, nothing=True)
    at(host, flushes=1, pending=1)
    assert before.since(NBD0, by_others=False) == Since(0, by_program=False)


def test_after_a_minute_nothing_can_be_lost(host: Host) -> None:
    moment = memory.moment_of(NBD0)
    before = Memory("", CONTENT, Moment(moment.written, moment.touched, moment.flushes, moment.at - 61))
    assert before.since(NBD0, by_others=True) == Since(0, by_program=False, by_others=True, nothing=True)


def test_a_program_that_writes_to_the_node_is_noticed(host: Host, tmp_path: Path) -> None:
    before = now()
    os.utime(tmp_path / "node", (1, 1))
    assert before.moment.is_before_changes(memory.moment_of(NBD0))
    assert before.since(NBD0, by_others=False) == Since(0, by_program=True)


def test_a_kernel_that_counts_nothing_leaves_us_in_doubt(host: Host) -> None:
    (host.sys / "block/nbd0/queue/iostats").write_text("0\n")
    before = now()
    assert before.moment.is_before_changes(memory.moment_of(NBD0))
    assert before.since(NBD0, by_others=False) == Since(None, by_program=False)


def test_counters_that_began_anew_leave_us_in_doubt(host: Host) -> None:
    at(host, written=9)
    before = now()
    at(host, written=3)
    assert before.since(NBD0, by_others=False).written is None


def test_what_was_written_while_no_file_system_used_it_may_be_the_work_of_a_program(host: Host) -> None:
    """BLKDISCARD and BLKZEROOUT change no time of the node."""
    unused = replace(now(), used=False)
    assert not unused.since(NBD0, by_others=False).unused
    at(host, discarded=1)
    assert unused.since(NBD0, by_others=False).unused
    assert not replace(unused, used=True).since(NBD0, by_others=False).unused


def test_nodes_of_all_that_is_built_on_the_device_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pretend(tmp_path, monkeypatch)
    made.attach()
    block = made.sys / "block"
    (block / "nbd0/nbd0p1/holders/md0").mkdir(parents=True)
    (block / "nbd0/nbd0p1/partition").write_text("1")
    (block / "nbd0p1").symlink_to(block / "nbd0/nbd0p1")
    (block / "nbd0/holders/dm-0").mkdir(parents=True)
    (block / "md0/holders/dm-0").mkdir(parents=True)
    assert Kernel(NBD0).stack == ["/dev/nbd0", "/dev/nbd0p1", "/dev/dm-0", "/dev/md0"]
