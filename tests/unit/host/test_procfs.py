# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes: questions that a process of its own asks, and questions that are not asked of others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nbdattach.attached import users
from nbdattach.host import procfs


def test_an_answer_comes_from_a_process_that_holds_nobody_up() -> None:
    """If it stays behind in the kernel, it must not keep our output open, which a program may read to its end."""

    def where() -> str:
        return " ".join(os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2))

    assert procfs.answer_within(60, where) == "/dev/null /dev/null /dev/null"


def test_nothing_is_asked_of_a_file_system_that_may_never_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it is mounted in a namespace made for it, or at a place with a blank in its name."""
    for pid, number, kind in (("self", 1, "ext4"), ("7", 2, "fuse.slow")):
        (tmp_path / pid / "ns").mkdir(parents=True)
        (tmp_path / pid / "ns/mnt").symlink_to(f"mnt:[{number}]")
        (tmp_path / pid / "mountinfo").write_text(f"1 1 0:5 / /a\\040b rw - {kind} slow rw\n")
    (tmp_path / "7/stat").write_text("7 (name) S 1")
    (tmp_path / "7/fd").mkdir()
    (tmp_path / "7/fd/3").symlink_to("/a b/file")
    (tmp_path / "7/fd/4").symlink_to("/a/file")
    asked: list[str] = []

    def ask(place: str) -> os.stat_result:
        asked.append(place)
        raise FileNotFoundError

    monkeypatch.setattr(procfs, "PROC", str(tmp_path))
    monkeypatch.setattr(procfs, "_remote", {})
    with monkeypatch.context() as asking:
        asking.setattr(os, "stat", ask)
        for fd in (3, 4):
            assert not procfs.still_open(7, fd, {"43:0"})
    assert asked == [f"{tmp_path}/7/fd/4"]


def test_each_mapped_file_is_asked_once_and_none_of_a_file_system_that_may_never_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place may have a line feed in its name, which maps writes in another way than mountinfo."""
    for pid, number, kind in (("self", 1, "ext4"), ("7", 2, "fuse.slow")):
        (tmp_path / pid / "ns").mkdir(parents=True)
        (tmp_path / pid / "ns/mnt").symlink_to(f"mnt:[{number}]")
        (tmp_path / pid / "mountinfo").write_text(f"1 1 0:5 / /a\\012b rw - {kind} slow rw\n")
    mapped = (("7f0-7f1", "0:5 9", "/a\nb/file"), ("7f2-7f3", "0:6 1", "/a/file"), ("7f4-7f5", "0:6 1", "/a/file"))
    (tmp_path / "7/map_files").mkdir()
    for place, _, path in mapped:
        (tmp_path / "7/map_files" / place).symlink_to(path)
    lines = (f"{place} rw-s 00000000 {file} {path}\n" for place, file, path in mapped)
    (tmp_path / "7/maps").write_text("".join(line[:-1].replace("\n", "\\012") + "\n" for line in lines))
    asked: list[str] = []

    def ask(place: str) -> os.stat_result:
        asked.append(place)
        raise FileNotFoundError

    monkeypatch.setattr(procfs, "PROC", str(tmp_path))
    monkeypatch.setattr(procfs, "_remote", {})
    with monkeypatch.context() as asking:
        asking.setattr(os, "stat", ask)
        assert not procfs.still_open(7, procfs.MAPPED, {"43:0"})
    assert asked == [f"{tmp_path}/7/map_files/7f4-7f5"]


@pytest.mark.parametrize(
    ("line", "deleted"),
    [
        ("7f0-7f1 r-xp 00000000 fe:01 17    /usr/bin/python3.11 (deleted)", True),
        ("7f0-7f1 r--p 00000000 fe:01 17    /usr/lib/x.so.1", False),
        ("7f0-7f1 rw-s 00000000 00:01 17    /dev/zero (deleted)", False),
        ("7f0-7f1 rw-s 00000000 00:01 17    /memfd:x (deleted)", False),
        ("7f0-7f1 rw-p 00000000 00:00 0", False),
    ],
)
def test_files_that_were_replaced_under_a_process_are_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, deleted: bool
) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/maps").write_text(f"7f0-7f1 rw-p 00000000 00:00 0    [heap]\n{line}\n")
    monkeypatch.setattr(procfs, "PROC", str(tmp_path))
    assert procfs.runs_from_deleted_files() == deleted


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
    monkeypatch.setattr(procfs, "_pids", lambda: [os.getpid()])
    assert procfs.openers({"43:0"}) == []
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
        files = procfs._Files(process.pid)
        names = {files.name(fd): fd for fd in files.descriptors()}
        assert str(tmp_path / "file") in names
        fd = names[str(tmp_path / "file")]
        assert procfs._Files(process.pid).name(fd) == str(tmp_path / "file")
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("flags", "looked_at"), [(0x00208040, {2, 4, 5, 40}), (0x00400040, {2, 3, 4, 5, 40})])
def test_threads_of_the_kernel_are_not_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: int, looked_at: set[int]
) -> None:
    """In a container, process 2 is another one, and its children may have the device open.

    Processes 4 and 5 are programs that the kernel has started, such as handlers of core dumps. The first thread of 5
    has ended, so it shows no program.
    """
    for pid in (2, 3, 4, 5, 40):
        (tmp_path / f"{pid}/task/{pid}").mkdir(parents=True)
    (tmp_path / "2/stat").write_text(f"2 (kthreadd) S 0 0 0 0 -1 {flags} 0 0\n")
    (tmp_path / "2/task/2/children").write_text("3 4 5 ")
    (tmp_path / "5/task/6").mkdir()
    (tmp_path / "4/exe").symlink_to("/usr/bin/core-handler")
    monkeypatch.setattr(procfs, "PROC", str(tmp_path))
    assert set(procfs._pids()) == looked_at


OURS = ["1 0 8:1 / / rw - ext4 /dev/sda1 rw", "2 1 0:5 / /proc rw - proc proc rw"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (OURS, True),
        ([*OURS, "9 1 43:0 / /mnt rw - ext4 /dev/nbd0 rw"], True),
        (["1 0 0:50 / / rw - overlay overlay rw", *OURS[1:]], False),  # a container
        (["1 0 8:1 /srv/image / rw - ext4 /dev/sda1 rw"], False),  # RootDirectory= of a unit
        ([*OURS, "9 1 0:50 / / rw - tmpfs none rw"], False),  # mounted over
        ([], False),  # a chroot
    ],
)
def test_only_where_the_root_is_ours_programs_are_ours(
    monkeypatch: pytest.MonkeyPatch, theirs: list[str], ours: bool
) -> None:
    pid = os.getpid()
    monkeypatch.setattr(procfs, "lines", {"self/mountinfo": OURS, f"{pid}/mountinfo": theirs}.get)
    assert procfs.runs_our_programs(pid) == ours


def test_programs_in_a_namespace_of_another_user_namespace_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any user may make one, and put any program at /bin/umount in it."""
    monkeypatch.setattr(procfs, "lines", lambda _: OURS)
    monkeypatch.setattr(procfs.syscalls, "ns_get_userns", lambda _: os.open("/proc/self/ns/net", os.O_RDONLY))
    assert not procfs.runs_our_programs(os.getpid())


def test_programs_in_a_namespace_that_cannot_be_looked_at_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> int:
        raise PermissionError

    monkeypatch.setattr(procfs, "lines", lambda _: OURS)
    monkeypatch.setattr(procfs.syscalls, "ns_get_userns", refuse)
    assert not procfs.runs_our_programs(os.getpid())
    assert not procfs.runs_our_programs(1 << 22)


@pytest.mark.parametrize(
    ("line", "service"),
    [
        ("0::/system.slice/db.service", "db.service"),
        ("1:name=systemd:/system.slice/system-db.slice/db@1.service", "db@1.service"),
        ("5:devices:/system.slice/db.service", ""),
        ("0::/system.slice/db.service/payload", ""),
        ("0::/system.slice/docker-12ab.scope", ""),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/mail.service", ""),
        ("0::/", ""),
        ("", ""),
    ],
)
def test_a_service_is_what_systemd_can_restart(monkeypatch: pytest.MonkeyPatch, line: str, service: str) -> None:
    monkeypatch.setattr(procfs, "lines", {"7/cgroup": [line]}.get)
    assert procfs.service_of(7) == service


@pytest.mark.parametrize(
    ("ours", "service", "hint"),
    [
        (True, "db.service", "nsenter -m -t 7 umount '/a b'"),
        (False, "db@x\\x2dy.service", "systemctl restart 'db@x\\x2dy.service'"),
        (False, "", "kill 7"),
    ],
)
def test_no_hint_makes_root_run_a_program_of_another_users_namespace(
    monkeypatch: pytest.MonkeyPatch, ours: bool, service: str, hint: str
) -> None:
    monkeypatch.setattr(procfs, "runs_our_programs", lambda _: ours)
    monkeypatch.setattr(procfs, "service_of", lambda _: service)
    mount = users.Mount("/a b", "43:0", "/dev/nbd0", "ext4", procfs.Opener(7, "sleep"))
    assert users._mounted(mount, True).use.command == hint
