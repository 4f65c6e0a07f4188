# SPDX-License-Identifier: GPL-2.0-or-later
"""Open files and mappings of other processes: which questions are put, and that a look waits for none of them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbdattach.deadline import Deadline
from nbdattach.host import open_files, procfs


@pytest.fixture(autouse=True)
def no_thread_is_left_to_the_next_test() -> Iterator[None]:
    before, patience = len(os.listdir("/proc/self/task")), Deadline(60)
    yield
    while len(os.listdir("/proc/self/task")) > before:
        assert patience.sleep(0.001)


def slow_file_system(proc: Path, place: str) -> None:
    """Process 7 has a mount namespace with one there; mountinfo writes the place so."""
    for pid, number, kind in (("self", 1, "ext4"), ("7", 2, "fuse.slow")):
        (proc / pid / "ns").mkdir(parents=True)
        (proc / pid / "ns/mnt").symlink_to(f"mnt:[{number}]")
        (proc / pid / "mountinfo").write_text(f"1 1 0:5 / {place} rw - {kind} slow rw\n")


@contextlib.contextmanager
def asked_by_stat(proc: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The places that stat() is asked about; there is none of them."""
    asked: list[str] = []

    def ask(place: str) -> os.stat_result:
        asked.append(place)
        raise FileNotFoundError

    monkeypatch.setattr(procfs, "PROC", str(proc))
    monkeypatch.setattr(procfs, "_remote", {})
    with monkeypatch.context() as asking:
        asking.setattr(os, "stat", ask)
        yield asked


def test_nothing_is_asked_of_a_file_system_that_may_never_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it is mounted in a namespace made for it, or at a place with a blank in its name."""
    slow_file_system(tmp_path, "/a\\040b")
    (tmp_path / "7/stat").write_text("7 (name) S 1")
    (tmp_path / "7/fd").mkdir()
    (tmp_path / "7/fd/3").symlink_to("/a b/file")
    (tmp_path / "7/fd/4").symlink_to("/a/file")
    with asked_by_stat(tmp_path, monkeypatch) as asked:
        for fd in (3, 4):
            assert not open_files.still_open(7, fd, {"43:0"})
    assert asked == [f"{tmp_path}/7/fd/4"]


def test_each_mapped_file_is_asked_once_and_none_of_a_file_system_that_may_never_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place may have a line feed in its name, which maps writes in another way than mountinfo."""
    slow_file_system(tmp_path, "/a\\012b")
    mapped = (("7f0-7f1", "0:5 9", "/a\nb/file"), ("7f2-7f3", "0:6 1", "/a/file"), ("7f4-7f5", "0:6 1", "/a/file"))
    (tmp_path / "7/map_files").mkdir()
    for place, _, path in mapped:
        (tmp_path / "7/map_files" / place).symlink_to(path)
    lines = (f"{place} rw-s 00000000 {file} {path}\n" for place, file, path in mapped)
    (tmp_path / "7/maps").write_text("".join(line[:-1].replace("\n", "\\012") + "\n" for line in lines))
    with asked_by_stat(tmp_path, monkeypatch) as asked:
        assert not open_files.still_open(7, open_files.MAPPED, {"43:0"})
    assert asked == [f"{tmp_path}/7/map_files/7f4-7f5"]


def test_a_process_whose_mappings_cannot_be_read_now_does_not_hide_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of its memory may be held as long as a dead disk is away; a pipe waits like that.

    The look waits as long as it always does: below this /proc it cannot see whether a thread of ours runs.
    """
    for pid in ("7", "8", "9"):
        (tmp_path / pid / "map_files").mkdir(parents=True)
        (tmp_path / pid / "map_files/7f0-7f1").symlink_to("/dev/nbd0")
        (tmp_path / pid / "comm").write_text("name\n")
    os.mkfifo(tmp_path / "8/maps")
    for pid in ("7", "9"):
        (tmp_path / pid / "maps").write_text("7f0-7f1 rw-s 00000000 0:5 9 /dev/nbd0\n")
    monkeypatch.setattr(procfs, "PROC", str(tmp_path))
    monkeypatch.setattr(procfs, "number_of", lambda _: "43:0")
    try:
        found = {one.pid: one.fd for one in open_files.openers({"43:0"})}
        assert found == {7: open_files.MAPPED, 8: open_files.HIDDEN, 9: open_files.MAPPED}
        assert open_files.still_open(8, open_files.MAPPED, {"43:0"})  # it has shown the mapping before
    finally:
        os.close(os.open(tmp_path / "8/maps", os.O_RDWR | os.O_NONBLOCK))  # what waits there goes on


def test_what_all_files_of_a_process_have_in_common_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look goes over all descriptors of the machine, which may be many thousands."""
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(200)]
    read: list[str] = []

    def counted(name: str) -> None:
        work = getattr(procfs, name)

        def count(pid: Any) -> Any:
            read.append(name)
            return work(pid)

        monkeypatch.setattr(procfs, name, count)

    counted("_stat")
    counted("_namespace")
    monkeypatch.setattr(procfs, "pids", lambda: [os.getpid()])
    assert open_files.openers({"43:0"}) == []
    assert read == ["_namespace", "_namespace"]
    for number in files:
        os.close(number)


ENDS_ITS_FIRST_THREAD = """
import ctypes, sys, threading, time
file = open(sys.argv[1])
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_files_of_a_process_whose_first_thread_has_ended_are_seen(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = subprocess.Popen([sys.executable, "-c", ENDS_ITS_FIRST_THREAD, tmp_path / "file"])
    try:
        deadline = time.monotonic() + 30
        while procfs.alive(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert os.listdir(f"/proc/{process.pid}/fd") == []
        assert not procfs._has_no_program(str(process.pid))  # it would pass for a thread of the kernel
        files = open_files._Files(process.pid)
        names = {files.name(fd): fd for fd in files.descriptors()}
        assert str(tmp_path / "file") in names
        fd = names[str(tmp_path / "file")]
        assert open_files._Files(process.pid).name(fd) == str(tmp_path / "file")
    finally:
        process.kill()
        process.wait()
