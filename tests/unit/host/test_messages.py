# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages between processes of ours, over a pair of sockets."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from nbdattach.errors import ConnectionLost, DeviceInUse
from nbdattach.host import messages
from nbdattach.untrusted_json import parsed

Pair = tuple[socket.socket, socket.socket]
PATIENCE = 60.0


@dataclass(frozen=True)
class Thing:
    name: str
    parts: tuple[str, ...] = ()


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(PATIENCE)
        theirs.settimeout(PATIENCE)
        yield ours, theirs


def test_a_message_arrives_as_it_was_sent(pair: Pair) -> None:
    thing = Thing("disk \udcff", ("a", "b"))
    messages.send(pair[0], thing)
    message, descriptors = messages.receive(pair[1], 1)
    assert (messages.answer(Thing, parsed(message)), descriptors) == (thing, [])


def test_descriptors_arrive_with_their_message(pair: Pair) -> None:
    out, into = os.pipe()
    messages.send(pair[0], Thing("pipe"), [into])
    os.close(into)
    _, descriptors = messages.receive(pair[1], 1)
    os.write(descriptors[0], b"through")
    os.close(descriptors[0])
    with open(out, "rb") as pipe:
        assert pipe.read() == b"through"


def test_a_peer_that_is_gone_says_nothing(pair: Pair) -> None:
    pair[0].close()
    assert messages.receive(pair[1]) == (b"", [])


def test_an_error_for_an_answer_is_raised(pair: Pair) -> None:
    messages.send(pair[0], ConnectionLost("nbd://db1", "right now"))
    message, _ = messages.receive(pair[1])
    with pytest.raises(ConnectionLost, match="the server closed the connection") as caught:
        messages.answer(Thing, parsed(message))
    assert caught.value.thing == "nbd://db1"


@pytest.mark.parametrize("content", [None, [], {}, {"name": 5}, {"code": "x"}])
def test_an_answer_that_cannot_be_read_is_a_value_error(content: object) -> None:
    with pytest.raises(ValueError, match=r"Thing|Facts"):
        messages.answer(Thing, content)


@pytest.mark.parametrize(("count", "length"), [(10_000, 20), (300, 4000), (3, 60_000)])
def test_of_more_users_than_fit_the_first_arrive(pair: Pair, count: int, length: int) -> None:
    users = [f"{number} {'x' * length}" for number in range(count)]
    messages.send(pair[0], DeviceInUse("/dev/nbd0", "open", "kill", users))
    message, _ = messages.receive(pair[1])
    assert json.loads(message)["cause"] == "open"
    with pytest.raises(DeviceInUse) as caught:
        messages.answer(Thing, parsed(message))
    assert 0 < len(caught.value.users) < count
    assert caught.value.users == tuple(users[: len(caught.value.users)])


def test_a_user_that_does_not_fit_does_not_keep_the_error_from_arriving(pair: Pair) -> None:
    messages.send(pair[0], DeviceInUse("/dev/nbd0", "open", "kill", ["x" * messages.MAX_MESSAGE]))
    with pytest.raises(DeviceInUse) as caught:
        messages.answer(Thing, parsed(messages.receive(pair[1])[0]))
    assert caught.value.users == ()
