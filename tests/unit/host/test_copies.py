# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies of this process: what they keep, how they end, and that none stays as a zombie."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import time
from pathlib import Path

import pytest
from loopback import PATIENCE, eventually

from nbdattach.host.copies import Copy, answer_within

NAME = "nbdattach-test"


def raised(number: int) -> int:
    os.kill(os.getpid(), number)
    return 0


def fails(number: int) -> int:
    raise OSError(number, "no")


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (5, 5)])
def test_its_exit_status_is_what_the_work_returns(code: int | None, expected: int) -> None:
    assert Copy(lambda: code, name=NAME).wait(PATIENCE) == expected


def test_an_error_of_the_system_is_its_errno() -> None:
    assert Copy(lambda: fails(28), name=NAME).wait(PATIENCE) == 28


def test_another_error_is_a_failure_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert Copy(lambda: 1 // 0, name=NAME).wait(PATIENCE) == 1
    assert capfd.readouterr() == ("", "")


def test_one_that_a_signal_ends_is_told_from_others() -> None:
    assert Copy(lambda: os.kill(os.getpid(), signal.SIGTERM), name=NAME).wait(PATIENCE) == -signal.SIGTERM


def test_a_wait_has_an_end() -> None:
    ours, theirs = os.pipe()
    one = Copy(lambda: len(os.read(ours, 1)), ours, name=NAME)
    began = time.monotonic()
    assert one.wait(0.05) is None
    assert time.monotonic() - began >= 0.05
    assert not one.ended
    os.write(theirs, b"x")
    assert one.wait() == 1
    assert one.ended
    assert one.wait(0) == 1
    for number in (ours, theirs):
        os.close(number)


def test_it_has_the_given_descriptors_only_and_its_own_name(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    with open(tmp_path / "file", "w") as file:
        Copy(lambda: os.write(theirs, look(theirs)) and 0, theirs, name=NAME, own_session=True)
        os.close(theirs)
        said = os.read(ours, 4096).decode().splitlines()
        assert os.read(ours, 1) == b""  # no other process holds the other end
        assert not file.closed
    os.close(ours)
    assert said == ["0 /dev/null", "1 /dev/null", "2 /dev/null", NAME, "/", "True"]


def look(channel: int) -> bytes:
    numbers = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    numbers.remove(max(numbers))  # of its exit status
    links = [f"{number} {os.readlink(f'/proc/self/fd/{number}')}" for number in numbers[:3]]
    # That of the list itself is closed by now.
    others = [str(number) for number in numbers[3:] if number != channel and os.path.exists(f"/proc/self/fd/{number}")]
    name = Path("/proc/self/comm").read_text().strip()
    lines = [*links, *others, name, os.getcwd(), str(os.getsid(0) == os.getpid())]
    return "\n".join(lines).encode()


def test_handlers_of_ours_do_not_hold_it() -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        ours, theirs = os.pipe()
        one = Copy(lambda: len(os.read(ours, 1)), ours, name=NAME)
        eventually(lambda: Path(f"/proc/{one._pid}/comm").read_text().strip() == NAME)
        os.kill(one._pid, signal.SIGTERM)
        assert one.wait(PATIENCE) == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    for number in (ours, theirs):
        os.close(number)


def test_it_ignores_what_we_ignore() -> None:
    """As with nohup: else a signal of the terminal would end a flush, and not the command that waits for it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert Copy(lambda: raised(signal.SIGHUP) + 7, name=NAME).wait(PATIENCE) == 7
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_that_nobody_waits_for_is_no_zombie_after_the_next() -> None:
    first = Copy(lambda: 0, name=NAME)
    eventually(lambda: Path(f"/proc/{first._pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert Copy(lambda: 0, name=NAME).wait(PATIENCE) == 0
    assert not Path(f"/proc/{first._pid}").exists()


def test_its_exit_status_is_known_where_the_kernel_keeps_none() -> None:
    """As in a program that ignores SIGCHLD: a flush that has failed must not look as if it had not."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert Copy(lambda: fails(5), name=NAME).wait(PATIENCE) == 5
        assert Copy(lambda: 0, name=NAME).wait(PATIENCE) == 0
        one = Copy(lambda: time.sleep(PATIENCE), name=NAME)
        one.kill()
        assert one.wait(PATIENCE) == -signal.SIGKILL
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_it_leaves_no_descriptor_here() -> None:
    before = os.listdir("/proc/self/fd")
    assert Copy(lambda: 0, name=NAME).wait(PATIENCE) == 0
    assert os.listdir("/proc/self/fd") == before


def test_it_can_be_killed() -> None:
    one = Copy(lambda: time.sleep(PATIENCE), name=NAME)
    one.kill()
    assert one.wait(PATIENCE) == -signal.SIGKILL
    one.kill()


def test_an_answer_comes_though_this_process_has_a_thousand_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a monitor of many devices has them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pipe = os.pipe

    def high() -> tuple[int, int]:
        ours, theirs = pipe()
        moved = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 1024)
        os.close(ours)
        return moved, theirs

    monkeypatch.setattr(os, "pipe", high)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        assert answer_within(PATIENCE, lambda: "yes") == "yes"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_answer_comes_from_a_process_that_holds_nobody_up() -> None:
    """If it stays behind in the kernel, it must not keep our output open, which a program may read to its end."""

    def where() -> str:
        return " ".join(os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2))

    assert answer_within(60, where) == "/dev/null /dev/null /dev/null"
