# SPDX-License-Identifier: GPL-2.0-or-later
"""The other end of a real socket: a thread on the loopback that serves each connection in the way it is told."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nbdattach.errors import DeadlinePassed
from nbdattach.protocol.target import Target

Serve = Callable[[socket.socket], object]
PATIENCE = 60.0
FULL = ": the server may be full"
# Shorter than any hang in these tests.
SOON = 20.0


@contextlib.contextmanager
def listening(serve: Serve, path: Path | None = None) -> Iterator[Target]:
    """A server that runs `serve` with each connection, one after the other; on TCP, or at the Unix socket `path`."""
    server, served = _bound(path), list[socket.socket]()
    thread = threading.Thread(target=_accept, args=(server, serve, served), daemon=True)
    thread.start()
    try:
        yield Target(socket=str(path)) if path else Target("127.0.0.1", server.getsockname()[1])
    finally:
        for sock in (server, *served):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)
        server.close()
        assert not thread.is_alive(), "the peer does not end"


def _bound(path: Path | None) -> socket.socket:
    if path is None:
        return socket.create_server(("127.0.0.1", 0))
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


def _accept(server: socket.socket, serve: Serve, served: list[socket.socket]) -> None:
    while True:
        try:
            sock, _ = server.accept()
        except OSError:
            return
        sock.settimeout(PATIENCE)
        served[:] = [sock]
        with sock, contextlib.suppress(OSError):
            serve(sock)


def drain(sock: socket.socket) -> bytes:
    """All bytes from the client until it closes."""
    heard = bytearray()
    while more := sock.recv(4096):
        heard += more
    return bytes(heard)


def silence(sock: socket.socket) -> None:
    drain(sock)


def says(data: bytes) -> Serve:
    """Sends `data` and closes."""
    return lambda sock: sock.sendall(data)


def says_and_hears(data: bytes, heard: list[bytes]) -> Serve:
    """Sends `data`, and puts the client's bytes into `heard`."""

    def serve(sock: socket.socket) -> None:
        sock.sendall(data)
        heard.append(drain(sock))

    return serve


def drips(data: bytes) -> Serve:
    """Sends `data` over and over, a byte at a time, until the client closes."""

    def serve(sock: socket.socket) -> None:
        pace = threading.Event()
        for byte in itertools.cycle(data):
            sock.sendall(bytes([byte]))
            pace.wait(0.002)

    return serve


def closed_port() -> int:
    """A port without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """A port that answers no connect: its queue is full, and no program accepts."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]


@contextlib.contextmanager
def soon(seconds: float = 0.0) -> Iterator[None]:
    """Within so many seconds; far less than any other wait takes, and enough for a busy machine."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds + SOON


def left_waiting_for(step: str, ask: Callable[[float], object]) -> str:
    """`ask` gets a short deadline, and must raise an error that names that step; returns its text.

    On a busy machine a deadline may pass at an earlier step; naming that one is right, too.
    """
    for seconds in (0.2, 1.0, 5.0, 25.0):
        with soon(seconds), pytest.raises(DeadlinePassed) as caught:
            ask(seconds)
        if f"({step})" in caught.value.cause:
            break
    assert caught.value.cause.removesuffix(FULL) == f"no answer within {seconds:g} s ({step})"
    return str(caught.value)
