# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that may never return. A FIFO stands for a device with a silent server: to open it waits for the other end."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from nbdattach.deadline import Deadline
from nbdattach.host import blocking, procfs, syscalls
from nbdattach.host.blocking import Killed, Opening, Sending, Unanswered, WriteBack

A_MINUTE = 60.0


def eventually(condition: Callable[[], bool]) -> None:
    patience = Deadline(A_MINUTE)
    while not condition():
        assert patience.sleep(0.001)


@pytest.fixture
def silent(tmp_path: Path) -> str:
    path = f"{tmp_path}/silent"
    os.mkfifo(path)
    return path


def test_a_descriptor_comes_with_its_flags(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with Opening(os.O_RDONLY, f"{tmp_path}/file") as opening:
        fd = opening.wait(Deadline(A_MINUTE))
        assert not os.get_inheritable(fd)
        with open(fd) as file:
            assert file.read() == "here"
        assert not file.writable()


def test_an_error_is_that_of_open(tmp_path: Path) -> None:
    with Opening(os.O_RDONLY, f"{tmp_path}/nowhere") as opening, pytest.raises(FileNotFoundError):
        opening.wait(Deadline(A_MINUTE))


def test_a_process_that_was_killed_before_it_opened_has_no_error_of_open(silent: str) -> None:
    """The number of the signal is that of an error, too."""
    with Opening(os.O_RDONLY, silent) as opening:
        opening._process.kill()
        with pytest.raises(Killed):
            opening.wait(Deadline(A_MINUTE))
    with WriteBack(silent) as writing:
        writing._process.kill()
        with pytest.raises(Killed):
            writing.run(Deadline(A_MINUTE))


def test_a_process_that_was_killed_before_it_read_the_question_is_no_error_of_writing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with WriteBack(f"{tmp_path}/file") as writing:
        writing.open(Deadline(A_MINUTE))
        os.kill(writing.pid, signal.SIGSTOP)
        eventually(lambda: procfs.stopped(writing.pid))
        with pytest.raises(Unanswered):
            writing.run(Deadline(0.01))
        os.kill(writing.pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(Killed):
                writing.run(Deadline(A_MINUTE))


def test_a_process_that_was_killed_while_it_wrote_may_have_seen_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_without_end(_: int) -> None:
        (tmp_path / "begun").touch()
        signal.pause()

    monkeypatch.setattr(syscalls, "sync_file_range", write_without_end)
    (tmp_path / "file").touch()
    with WriteBack(f"{tmp_path}/file") as writing:
        writing.open(Deadline(A_MINUTE))
        with pytest.raises(Unanswered):
            writing.run(Deadline(0.01))
        eventually((tmp_path / "begun").exists)
        os.kill(writing.pid, signal.SIGKILL)
        with pytest.raises(InterruptedError):
            writing.run(Deadline(A_MINUTE))


def test_a_process_that_hangs_while_it_opens_is_not_waited_for(silent: str) -> None:
    """The refusal of a device that cannot be opened took longer by these seconds."""
    writing, deadline = WriteBack(silent), Deadline(blocking._END_SECONDS)
    with pytest.raises(Unanswered):
        writing.open(Deadline(0.01))
    writing.close()
    assert not deadline.passed
    os.close(os.open(silent, os.O_WRONLY))
    assert writing._process.wait(A_MINUTE) is not None


def test_what_does_not_open_in_time_may_be_asked_for_again(silent: str) -> None:
    with Opening(os.O_RDONLY, silent) as opening:
        with pytest.raises(Unanswered):
            opening.wait(Deadline(0.01))
        with open(os.open(silent, os.O_WRONLY), "w") as other_end:
            fd = opening.wait(Deadline(A_MINUTE))
            other_end.write("here")
        with open(fd) as file:
            assert file.read() == "here"


def test_what_opens_after_it_was_given_up_is_closed(silent: str) -> None:
    with Opening(os.O_RDONLY, silent) as opening, pytest.raises(Unanswered):
        opening.wait(Deadline(0.01))
    other_end = os.open(silent, os.O_WRONLY)
    assert opening._process.wait(A_MINUTE) is not None
    with pytest.raises(BrokenPipeError):
        os.write(other_end, b"nobody")
    os.close(other_end)


def test_dirty_pages_are_written_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with WriteBack(f"{tmp_path}/file", f"{tmp_path}/nowhere") as writing:
        writing.open(Deadline(A_MINUTE))
        for _ in range(2):
            writing.run(Deadline(A_MINUTE))


def test_an_error_of_writing_has_its_number(silent: str) -> None:
    other_end = os.open(silent, os.O_RDWR)
    with WriteBack(silent) as writing:
        for _ in range(2):
            with pytest.raises(OSError, match="seek") as caught:
                writing.run(Deadline(A_MINUTE))
            assert caught.value.errno == errno.ESPIPE
    os.close(other_end)


@pytest.mark.parametrize("names", [("nowhere",), ("file", "file/x"), ("nowhere", "file")])
def test_the_first_one_has_to_open_and_others_if_they_are_there(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "file").touch()
    with WriteBack(*(f"{tmp_path}/{name}" for name in names)) as writing, pytest.raises(OSError, match="director"):
        writing.open(Deadline(A_MINUTE))


def test_an_answer_that_comes_late_is_not_taken_for_that_to_the_next_question(silent: str) -> None:
    with WriteBack(silent) as writing:
        for _ in range(2):
            with pytest.raises(Unanswered):
                writing.open(Deadline(0.01))
        with pytest.raises(Unanswered):
            writing.run(Deadline(0.01))
        other_end = os.open(silent, os.O_WRONLY)
        writing.open(Deadline(A_MINUTE))
        with pytest.raises(OSError, match="seek"):
            writing.run(Deadline(A_MINUTE))
    os.close(other_end)


def test_a_process_that_was_killed_before_it_was_asked_is_no_error_of_writing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with WriteBack(f"{tmp_path}/file") as writing:
        writing.run(Deadline(A_MINUTE))
        os.kill(writing.pid, signal.SIGKILL)
        writing._process.wait()
        with pytest.raises(Killed):
            writing.run(Deadline(A_MINUTE))


def test_a_message_is_sent_as_it_is() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        theirs.settimeout(A_MINUTE)
        Sending(ours.fileno(), b"\0message").wait(Deadline(A_MINUTE))
        assert theirs.recv(64) == b"\0message"


def test_a_message_that_is_not_taken_in_time_may_be_waited_for_again() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                ours.send(bytes(1 << 16))
        ours.setblocking(True)
        sending = Sending(ours.fileno(), b"last")
        with pytest.raises(Unanswered):
            sending.wait(Deadline(0.01))
        theirs.setblocking(True)
        received = b""
        while not received.endswith(b"last"):
            received = received[-4:] + theirs.recv(1 << 16)
        sending.wait(Deadline(A_MINUTE))
