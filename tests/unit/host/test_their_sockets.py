# SPDX-License-Identifier: GPL-2.0-or-later
"""A process is killed, and its connections are shut down only if it does not end; other descriptors are left alone."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nbdattach.host import syscalls, their_sockets

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root")
HOLDER = "import sys; print(flush=True); sys.stdin.read()"
Pairs = list[tuple[socket.socket, socket.socket]]


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    """Connections by TCP and by a Unix socket, and datagrams; the first end of each is another process's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        made = [(server.accept()[0], ours), socket.socketpair(), socket.socketpair(type=socket.SOCK_DGRAM)]
    yield made
    for pair in made:
        for one in pair:
            one.close()


@contextlib.contextmanager
def holder(pairs: Pairs) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the first ends; so do we, so that they stay open when it ends."""
    numbers = [theirs.fileno() for theirs, _ in pairs]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=numbers
    ) as process:
        assert process.stdout and process.stdin
        process.stdout.readline()
        yield process
        process.kill()


def ended(ours: socket.socket) -> bool:
    try:
        return ours.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def test_a_process_that_ends_is_killed_and_its_connections_are_not_touched(pairs: Pairs) -> None:
    with holder(pairs) as process:
        assert their_sockets.kill(process.pid, lambda: True)
        assert process.wait(60) == -9
        assert [ended(ours) for _, ours in pairs] == [False, False, False]


def test_if_it_does_not_end_its_connections_are_shut_down(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the kernel, which waits for them; its datagrams are none."""
    monkeypatch.setattr(their_sockets, "_ends", lambda _: False)
    with holder(pairs) as process:
        assert their_sockets.kill(process.pid, lambda: True)
        assert [ended(ours) for _, ours in pairs] == [True, True, False]
        assert pairs[2][1].send(b"still there") == 11


def test_a_process_that_has_gone_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    assert their_sockets.kill(gone.pid, lambda: True)


def test_another_process_of_that_number_is_left_alone(pairs: Pairs) -> None:
    with holder(pairs) as process:
        assert not their_sockets.kill(process.pid, lambda: False)
        assert process.poll() is None


@pytest.mark.parametrize("has_another", [True, False])
def test_standard_files_are_left_alone_by_whatever_number_unless_there_is_no_other_connection(
    has_another: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard output under systemd is a socket of the journal, and a listening socket may have been inherited."""
    monkeypatch.setattr(their_sockets, "_ends", lambda _: False)
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        os.fdopen(os.dup(theirs.fileno())) as again,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connection,
        server.accept()[0] as peer,
    ):
        passed = [again.fileno(), server.fileno(), *([connection.fileno()] if has_another else [])]
        with subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            stdout=theirs.fileno(),
            pass_fds=passed,
        ) as process:
            assert their_sockets.kill(process.pid, lambda: True)
            assert process.wait(60) == -9
        assert (ended(ours), ended(peer)) == (not has_another, has_another)
        socket.create_connection(server.getsockname()).close()


def test_without_pidfds_the_process_gets_the_signal(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with holder(pairs) as process:
        assert their_sockets.kill(process.pid, lambda: True)
        assert process.wait(60) == -9


def test_where_the_kernel_gives_us_no_sockets_the_process_is_killed(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_pidfd: int, _number: int) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(syscalls, "pidfd_getfd", refuse)
    monkeypatch.setattr(their_sockets, "_ends", lambda _: False)
    with holder(pairs) as process:
        assert their_sockets.kill(process.pid, lambda: True)
        assert process.wait(60) == -9
        assert [ended(ours) for _, ours in pairs] == [False, False, False]
