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
from nbdattach.connection.probe import Probe
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
        ready = Probe(target, None if unix else "127.0.0.1").answer(60).reached
        assert ready is not None
        with client.connect(target, 60, ready=ready).stream as stream:
            assert stream.sock is ready
        assert len(clients) == 1


@pytest.mark.parametrize(
    ("target", "address", "refused"),
    [
        (Target("db1", 1), None, False),  # its address is not known
        (Target("db1", 1), "not numeric", False),
        (Target(socket="/nonexistent/socket"), None, True),
    ],
)
def test_what_cannot_be_reached_is_no_connection(target: Target, address: str | None, refused: bool) -> None:
    assert Probe(target, address).answer(60) == probe.Answer(None, refused)


def test_at_a_closed_port_nothing_listens() -> None:
    usual = Probe(Target("db1", closed_port()), "127.0.0.1")
    for _ in range(2):
        assert usual.answer(60) == probe.Answer(None, refused=True)


def test_at_the_socket_that_a_server_left_behind_nothing_listens(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{tmp_path}/s")
    assert Probe(Target(socket=f"{tmp_path}/s"), None).answer(60) == probe.Answer(None, refused=True)


def test_a_silent_machine_is_not_waited_for() -> None:
    with deaf_port() as port, soon():
        assert Probe(Target("db1", port), "127.0.0.1").answer(0.1) == probe.Answer(None)


def test_a_server_that_is_too_busy_to_accept_is_there(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{tmp_path}/s")
        sock.listen(0)
        usual = Probe(Target(socket=f"{tmp_path}/s"), None)
        answers = [usual.answer(60) for _ in range(3)]
    assert answers[-1] == probe.Answer(None)
    for one in answers:
        if one.reached:
            one.reached.close()


def test_a_connection_to_itself_is_none_and_leaves_the_port_free(monkeypatch: pytest.MonkeyPatch) -> None:
    port = closed_port()
    real = socket.socket

    def bound(*arguments: int) -> socket.socket:
        made = real(*arguments)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", port))
        return made

    monkeypatch.setattr(socket, "socket", bound)
    assert Probe(Target("db1", port), "127.0.0.1").answer(60) == probe.Answer(None, refused=True)
    monkeypatch.undo()
    socket.create_server(("127.0.0.1", port)).close()


def test_a_connection_that_is_reset_at_once_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a proxy without its server; the reset may come after poll(2), so that the peer has no name any more."""

    def reset(_: socket.socket) -> bool:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(probe, "is_to_itself", reset)
    with listening(lambda _: None) as target:
        assert Probe(target, "127.0.0.1").answer(60) == probe.Answer(None)
