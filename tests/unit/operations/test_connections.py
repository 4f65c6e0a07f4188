# SPDX-License-Identifier: GPL-2.0-or-later
"""How many connections an attachment gets, from servers that have places for few."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
import wire
from peer import Serve, drain, soon

from nbdattach.connect_options import ConnectOptions
from nbdattach.errors import BrokenProtocol, DeadlinePassed, NbdattachError, NoConnection, Refused
from nbdattach.operations.connections import connected
from nbdattach.protocol.target import Target

MULTI_CONN = 1 | 1 << 8
SERVED = wire.greeting() + wire.sized(wire.GO, flags=MULTI_CONN) + wire.ack(wire.GO)


def serves(sock: socket.socket) -> None:
    sock.sendall(SERVED)
    drain(sock)


def is_silent(sock: socket.socket) -> None:
    """As qemu-nbd: the kernel has accepted it."""
    drain(sock)


def closes(_: socket.socket) -> None:
    """As nbdkit's filter limit."""


def resets(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def denies(sock: socket.socket) -> None:
    """As nbd-server."""
    sock.sendall(wire.greeting() + wire.reply(wire.GO, wire.POLICY, b"no"))
    drain(sock)


@contextlib.contextmanager
def places(count: int, otherwise: Serve) -> Iterator[Target]:
    """A server that serves so many clients at the same time, and does `otherwise` to the others."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            for number in range(99):
                try:
                    sock, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(sock, serves if number < count else otherwise)).start()

        def answer(sock: socket.socket, serve: Serve) -> None:
            with sock, contextlib.suppress(OSError):
                sock.settimeout(60)
                serve(sock)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield Target("127.0.0.1", server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture(autouse=True)
def four_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)


FULL: dict[str, tuple[Serve, type[NbdattachError]]] = {
    "silent": (is_silent, DeadlinePassed),
    "closes": (closes, NoConnection),
    "resets": (resets, NoConnection),
    "denies": (denies, Refused),
}


@pytest.mark.parametrize(
    ("otherwise", "count"),
    [(is_silent, 2), *((serve, count) for serve in (closes, resets, denies) for count in (1, 2, 3))],
)
def test_auto_takes_the_connections_that_a_full_server_has_given(otherwise: Serve, count: int) -> None:
    with (
        places(count, otherwise) as target,
        soon(),
        connected(target, ConnectOptions(connect_timeout=60), lambda _: None) as (_, made, _, notes),
    ):
        assert len(made) == count
        assert notes == [f"{target.uri}: the server accepted {count} of 4 connections; -C {count} asks for no more"]


def test_auto_says_nothing_where_it_gets_all() -> None:
    with places(4, closes) as target, connected(target, ConnectOptions(), lambda _: None) as (_, made, _, notes):
        assert (len(made), notes) == (4, [])


@pytest.mark.parametrize(("otherwise", "kind"), FULL.values(), ids=FULL)
def test_connections_that_were_asked_for_are_had_or_an_error(otherwise: Serve, kind: type[NbdattachError]) -> None:
    options = ConnectOptions(connections=3, connect_timeout=1)
    with places(2, otherwise) as target, pytest.raises(kind), connected(target, options, lambda _: None):
        pass


def another_export(sock: socket.socket) -> None:
    sock.sendall(wire.greeting() + wire.sized(wire.GO, wire.SIZE * 2, MULTI_CONN) + wire.ack(wire.GO))
    drain(sock)


@pytest.mark.parametrize("wanted", [0, 3])
def test_a_connection_to_another_disk_is_an_error_also_with_auto(wanted: int) -> None:
    with (
        places(2, another_export) as target,
        pytest.raises(BrokenProtocol, match="different exports"),
        connected(target, ConnectOptions(connections=wanted), lambda _: None),
    ):
        pass
