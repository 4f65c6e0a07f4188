# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections of another process are shut down; its other descriptors are left alone."""

from __future__ import annotations

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


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Connections by TCP and by a Unix socket, and datagrams; the first end of each is another process's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        made = [(server.accept()[0], ours), socket.socketpair(), socket.socketpair(type=socket.SOCK_DGRAM)]
    yield made
    for pair in made:
        for one in pair:
            one.close()


def test_its_connections_are_shut_down_and_nothing_else(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    numbers = [theirs.fileno() for theirs, _ in pairs]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=numbers
    ) as holder:
        assert holder.stdout and holder.stdin
        holder.stdout.readline()
        assert their_sockets.shut_down(holder.pid) == 2
        tcp, unix, datagrams = (ours for _, ours in pairs)
        for ours in (tcp, unix):
            ours.settimeout(60)
            assert ours.recv(1) == b""
        assert datagrams.send(b"still there") == 11
        assert holder.poll() is None
        holder.stdin.close()


def test_a_process_that_has_ended_has_none() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    assert their_sockets.shut_down(gone.pid) == 0


def test_where_the_kernel_does_not_let_us_nothing_is_done(
    pairs: list[tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_pidfd: int, _number: int) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(syscalls, "pidfd_getfd", refuse)
    assert their_sockets.shut_down(os.getpid()) == 0
    assert pairs[0][0].send(b"a") == 1
