# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections over the loopback of which one end is ours, for the kernel; and what may become of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from nbdattach.connection.kernel_socket import Link
from nbdattach.deadline import Deadline

Pair = tuple[Link, socket.socket, socket.socket]
SO_ATTACH_FILTER = 26
PATIENCE = 60.0
Transport = Callable[[], contextlib.AbstractContextManager[Pair]]


@contextlib.contextmanager
def tcp() -> Iterator[Pair]:
    """Our link, the socket that it is a duplicate of, and the peer's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    yield from paired(ours, theirs)


@contextlib.contextmanager
def unix() -> Iterator[Pair]:
    yield from paired(*socket.socketpair())


def paired(ours: socket.socket, theirs: socket.socket) -> Iterator[Pair]:
    theirs.settimeout(PATIENCE)
    made = Link.of(os.dup(ours.fileno()))
    with ours, theirs, contextlib.closing(made):
        yield made, ours, theirs


KINDS = {"tcp": tcp, "unix": unix}
each_kind = pytest.mark.parametrize("pair", KINDS.values(), ids=KINDS)
Opened = Callable[[], contextlib.AbstractContextManager[Pair]]


def eventually(true: Callable[[], bool]) -> None:
    deadline = Deadline(PATIENCE)
    while not true():
        assert deadline.sleep(0.005)


def fill(sock: socket.socket) -> int:
    """Sends until neither end takes more; how much that was."""
    sock.setblocking(False)
    sent = refusals = 0
    while refusals < 20:  # in a row, as the window opens in steps
        try:
            sent += sock.send(bytes(1 << 16))
            refusals = 0
        except BlockingIOError:
            refusals += 1
            time.sleep(0.005)
    return sent


def cut_off(sock: socket.socket) -> None:
    """Whatever comes to it is dropped before TCP sees it, as by a cut link: a filter of one instruction, "ret 0"."""
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))
