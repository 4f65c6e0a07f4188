# SPDX-License-Identifier: GPL-2.0-or-later
"""A copy of this process that reads. A FIFO stands for a device with a silent server: its opener waits for a writer."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from nbdattach.deadline import Deadline
from nbdattach.host import procfs
from nbdattach.host.blocking import Unanswered
from nbdattach.host.reading import Reading

A_MINUTE = 60.0
BLOCK = bytes(range(256)) * 2


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = tmp_path / "disk"
    path.write_bytes(BLOCK * 1024)
    return str(path)


@pytest.fixture
def silent(tmp_path: Path) -> str:
    path = f"{tmp_path}/silent"
    os.mkfifo(path)
    return path


def pid_of(one: Reading) -> int:
    return one._process._pid


def test_ranges_are_read_until_it_is_killed(disk: str) -> None:
    one = Reading(disk)
    assert one.read([(4096, 512), (65536, 131072)], Deadline(A_MINUTE)) == [BLOCK, BLOCK * 256]
    assert not one.ended
    one.kill(A_MINUTE)
    assert one.ended
    with pytest.raises(OSError, match=r"Broken pipe|Connection reset"):
        one.read([(0, 512)], Deadline(A_MINUTE))
    one.close()


def test_it_ends_with_the_channel(disk: str) -> None:
    one = Reading(disk)
    one.read([(0, 512)], Deadline(A_MINUTE))
    one.close()
    end = Deadline(A_MINUTE)
    while not one.ended:
        assert end.sleep(0.01)


def test_an_error_is_that_of_the_call(tmp_path: Path) -> None:
    one = Reading(f"{tmp_path}/nowhere")
    with pytest.raises(FileNotFoundError):
        one.read([(0, 512)], Deadline(A_MINUTE))
    one.kill(A_MINUTE)
    one.close()


def test_what_takes_too_long_is_given_up(silent: str) -> None:
    one = Reading(silent)
    with pytest.raises(Unanswered):
        one.read([(0, 512)], Deadline(0.05))
    one.kill(A_MINUTE)
    assert one.ended
    one.close()


def test_a_process_that_hangs_holds_nothing_of_ours(silent: str, tmp_path: Path) -> None:
    """No lock, no connection, no handler of a signal; and it is known by its name."""
    ours, theirs = socket.socketpair()
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    one = Reading(silent)
    try:
        pid, end = pid_of(one), Deadline(A_MINUTE)
        with pytest.raises(Unanswered):
            one.read([(0, 512)], Deadline(0.05))
        while not procfs.is_ours(pid, procfs.LOOK) and os.geteuid() == 0:
            assert end.sleep(0.01)
        links = {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        assert [links.pop(fd) for fd in "012"] == ["/dev/null"] * 3
        assert sorted(one.partition(":")[0] for one in links.values()) == [
            "pipe",
            "socket",
        ]  # its exit status, its work
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        theirs.close()
        ours.settimeout(A_MINUTE)
        assert ours.recv(1) == b""
        os.kill(pid, signal.SIGTERM)
        while not one.ended:
            assert end.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
        one.close()


def test_one_that_nobody_waits_for_is_no_zombie_for_long(silent: str, disk: str) -> None:
    one = Reading(silent)
    pid = pid_of(one)
    one.close()
    del one
    os.kill(pid, signal.SIGKILL)
    end = Deadline(A_MINUTE)
    while os.path.exists(f"/proc/{pid}"):
        another = Reading(disk)
        another.kill(A_MINUTE)
        another.close()
        assert end.sleep(0.01)


def test_no_program_is_started(disk: str) -> None:
    """The files of the system may be on a device whose server is away."""
    one = Reading(disk)
    one.read([(0, 512)], Deadline(A_MINUTE))
    assert os.readlink(f"/proc/{pid_of(one)}/exe") == os.readlink("/proc/self/exe")
    assert Path(f"/proc/{pid_of(one)}/cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes()
    one.kill(A_MINUTE)
    one.close()


def test_a_parent_may_have_had_the_end_of_children_ignored(disk: str) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        one = Reading(disk)
        one.read([(0, 512)], Deadline(A_MINUTE))
        assert not one.ended
        one.kill(A_MINUTE)
        assert one.ended
        one.kill(0)
        one.close()
    finally:
        signal.signal(signal.SIGCHLD, before)
