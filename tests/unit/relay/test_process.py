# SPDX-License-Identifier: GPL-2.0-or-later
"""What a relay answers to orders that it cannot read. What it does with the others needs a server: `servers`."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from nbdattach.relay import process
from nbdattach.relay.pumps import Pumps

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
        assert json.loads(orders.recv(999))["cause"].startswith("it cannot read the order: ")
        relays.close()
        kernels.settimeout(PATIENCE)
        assert kernels.recv(1) == b""  # the relay keeps nothing of it
    orders.send(b'{"do": "bury"}')
    assert json.loads(orders.recv(999)) == {"said": "buried"}


def test_a_dial_without_a_socket_is_answered(orders: socket.socket) -> None:
    orders.send(b'{"do": "dial"}')
    assert json.loads(orders.recv(999))["cause"].startswith("it cannot read the order: IndexError")
