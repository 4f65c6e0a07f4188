# SPDX-License-Identifier: GPL-2.0-or-later
"""A bare connect to a server that may be away: it never waits long, and what it makes is used."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
import wire
from peer import closed_port, deaf_port, listening, says_and_hears, soon

from nbdattach.connection import client, probe
from nbdattach.protocol.target import Target

GO = wire.greeting() + wire.sized(wire.GO) + wire.ack(wire.GO)


@pytest.mark.parametrize("unix", [True, False])
def test_the_connection_of_a_probe_is_the_one_that_is_used(unix: bool, tmp_path: Path) -> None:
    clients: list[socket.socket] = []
    serve = says_and_hears(GO, [])

    def counted(sock: socket.socket) -> None:
        clients.append(sock)
        serve(sock)

    with listening(counted, tmp_path / "s" if unix else None) as target:
        ready = probe.reached(target, None if unix else "127.0.0.1", 60)
        assert ready is not None
        with client.connect(target, 60, ready=ready).stream as stream:
            assert stream.sock is ready
        assert len(clients) == 1


@pytest.mark.parametrize(
    ("target", "address"),
    [
        (Target("db1", 1), None),  # its address is not known
        (Target("db1", 1), "not numeric"),
        (Target(socket="/nonexistent/socket"), None),
    ],
)
def test_what_cannot_be_reached_is_no_connection(target: Target, address: str | None) -> None:
    assert probe.reached(target, address, 60) is None


def test_a_closed_port_is_no_connection() -> None:
    assert probe.reached(Target("db1", closed_port()), "127.0.0.1", 60) is None


def test_a_silent_machine_is_not_waited_for() -> None:
    with deaf_port() as port, soon():
        assert probe.reached(Target("db1", port), "127.0.0.1", 0.1) is None


def test_a_connection_to_itself_is_none_and_leaves_the_port_free(monkeypatch: pytest.MonkeyPatch) -> None:
    port = closed_port()
    real = socket.socket

    def bound(*arguments: int) -> socket.socket:
        made = real(*arguments)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", port))
        return made

    monkeypatch.setattr(socket, "socket", bound)
    assert probe.reached(Target("db1", port), "127.0.0.1", 60) is None
    monkeypatch.undo()
    socket.create_server(("127.0.0.1", port)).close()


def test_a_connection_that_is_reset_at_once_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a proxy without its server; the reset may come after poll(2), so that the peer has no name any more."""

    def reset(_: socket.socket) -> bool:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(probe, "is_to_itself", reset)
    with listening(lambda _: None) as target:
        assert probe.reached(target, "127.0.0.1", 60) is None
