# SPDX-License-Identifier: GPL-2.0-or-later
"""The orders of a relay: those that it cannot read, those of another version, and what it answers over a clear
connection. With TLS it needs a server: `servers`.
"""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import wire
from peer import closed_port, drain, listening, says_and_hears

from nbdattach.errors import NbdattachError, NoConnection, UnknownExport
from nbdattach.host import systemd
from nbdattach.protocol.export import BlockSize, Export
from nbdattach.protocol.target import Target
from nbdattach.relay import process
from nbdattach.relay.dialer import Relay
from nbdattach.relay.loop import Pumps
from nbdattach.relay.orders import Dial

PATIENCE = 60.0


@pytest.fixture
def orders() -> Iterator[socket.socket]:
    """To the thread of a relay that takes orders; its loop, too, runs until nobody can give any more."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE)
    pumps = Pumps()
    threads = [threading.Thread(target=process._Clerk(theirs, pumps).work), threading.Thread(target=pumps.run)]
    for thread in threads:
        thread.start()
    with theirs:
        yield ours
        ours.close()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


UNREADABLE = {
    "cut": b"{",
    "deep": b"[" * 60_000,
    "a list": b"[]",
    "a number": b"5",
    "no order": b"{}",
    "no target": b'{"do": "dial"}',
    "a target without a host": b'{"do": "dial", "target": {"colour": "blue"}}',
}


@pytest.mark.parametrize("order", UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_order_is_answered_and_the_next_one_obeyed(orders: socket.socket, order: bytes) -> None:
    kernels, relays = socket.socketpair()
    with kernels, relays:
        socket.send_fds(orders, [order], [relays.fileno()])
        assert json.loads(orders.recv(999))["cause"].startswith("it cannot read the request: ")
        relays.close()
        kernels.settimeout(PATIENCE)
        assert kernels.recv(1) == b""  # the relay keeps nothing of it
    orders.send(b'{"do": "bury"}')
    assert json.loads(orders.recv(999)) == {"said": "buried"}


def test_a_dial_without_a_socket_is_answered(orders: socket.socket) -> None:
    orders.send(b'{"do": "dial"}')
    assert json.loads(orders.recv(999))["cause"].startswith("it cannot read the request: IndexError")


# -- a dialer at the other end -----------------------------------------------------------------------------------------

GO = wire.greeting() + wire.sized(wire.GO, (1 << 64) - 1) + wire.blocks(wire.GO, 1, 4096, 1 << 25) + wire.ack(wire.GO)


def greets(sock: socket.socket) -> None:
    sock.sendall(GO)
    drain(sock)


@pytest.fixture
def relay(orders: socket.socket, monkeypatch: pytest.MonkeyPatch) -> Relay:
    monkeypatch.setattr(systemd, "give_scope", lambda *_: None)
    return Relay(orders)


def test_what_a_server_says_of_its_export_arrives_whole(relay: Relay) -> None:
    traced: list[str] = []
    with listening(greets) as target:
        made = relay.dial(Dial(target, PATIENCE, 30.0), traced.append)
        with made.stream.sock:
            sizes = BlockSize(1, 4096, 1 << 25)
            assert made.export == Export("", (1 << 64) - 1, wire.FLAGS, "newstyle-fixed", "", sizes)
    assert made.tls is None
    assert traced[0].startswith("connecting to 127.0.0.1 port ")


def test_an_error_arrives_as_its_class(relay: Relay) -> None:
    nowhere = Target("127.0.0.1", closed_port())
    with pytest.raises(NoConnection, match="Connection refused") as caught:
        relay.dial(Dial(nowhere, PATIENCE, 30.0), lambda _: None)
    assert caught.value.thing == nowhere.uri
    unknown = wire.greeting() + wire.reply(wire.GO, wire.UNKNOWN) + wire.reply(wire.LIST, wire.UNSUP)
    with listening(says_and_hears(unknown, [])) as target, pytest.raises(UnknownExport):
        relay.dial(Dial(target, PATIENCE, 30.0), lambda _: None)


def test_an_answer_that_cannot_be_read_is_an_error_of_ours() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        theirs.send(b'{"export": 5}')
        relay = Relay(ours)
        with pytest.raises(NbdattachError, match="relay: its answer cannot be read"):
            relay.dial(Dial(Target("db1"), PATIENCE, 30.0), lambda _: None)
        theirs.send(b"[")
        relay.bury(PATIENCE)
        relay.close()


# -- a peer of another version -----------------------------------------------------------------------------------------


def order_of_before(target: Target) -> dict[str, Any]:
    """As the version before dataclasses gives it: `dial` without a limit for TCP has Infinity there."""
    return {
        "do": "dial", "target": asdict(target), "timeout": 30.0, "connect_within": math.inf, "raw_size": None,
        "dead_peer": 30.0,
    }  # fmt: skip


def test_an_order_is_the_one_of_before() -> None:
    target = Target("db1", tls=True)
    assert json.dumps(asdict(Dial(target, 30.0, 30.0)), sort_keys=True) == json.dumps(
        order_of_before(target), sort_keys=True
    )


def test_an_order_of_before_is_obeyed_and_its_answer_is_the_one_of_before(orders: socket.socket) -> None:
    kernels, relays = socket.socketpair()
    with listening(greets) as target, kernels:
        with relays:
            socket.send_fds(orders, [json.dumps(order_of_before(target)).encode()], [relays.fileno()])
        answers: list[dict[str, Any]] = []
        while not answers or answers[-1].keys() == {"trace"}:
            answers.append(json.loads(orders.recv(9999)))
    block_size = {"minimum": 1, "preferred": 4096, "maximum": 1 << 25}
    export = {"name": "", "size": (1 << 64) - 1, "flags": wire.FLAGS, "protocol": "newstyle-fixed", "description": ""}
    assert answers[-1].pop("pid") > 1
    assert answers[-1] == {"export": {**export, "block_size": block_size}, "tls": None}
    assert len(answers) > 1


@pytest.mark.parametrize(
    "order",
    [{"colour": "blue"}, {"target": {"host": "db1", "tls_pin": "x"}}, {"timeout": "5"}, {"dead_peer": math.nan}],
    ids=repr,
)
def test_an_order_that_asks_for_more_than_we_know_is_refused(order: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"unknown fields|wrong type"):
        Dial.of({**order_of_before(Target("db1")), **order})


@pytest.mark.parametrize("limit", [2.5, math.inf])
def test_an_order_that_was_sent_is_the_one_that_arrives(limit: float) -> None:
    order = Dial(Target("db1", tls=True, export="\udcff"), 30.0, 0.0, limit, 1 << 40)
    assert Dial.of(json.loads(json.dumps(asdict(order)))) == order
