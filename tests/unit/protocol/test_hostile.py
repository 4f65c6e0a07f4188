# SPDX-License-Identifier: GPL-2.0-or-later
"""A peer is not trusted: for any data, the result is an error of ours or a value, soon and in little memory.

`make test` holds the same few thousand conversations each time, NBDATTACH_EXAMPLES=all a hundred thousand others.
NBDATTACH_HOSTILE is the number of conversations, NBDATTACH_SEED the first one's number (a failure prints it).
"""

from __future__ import annotations

import itertools
import os
import random
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
import wire
from hostile import Case, case, listen_without_end
from script import Played, play

from nbdattach.errors import BrokenProtocol, NbdattachError
from nbdattach.protocol import handshake
from nbdattach.protocol.steps import Steps
from nbdattach.protocol.target import Target

ALL = os.environ.get("NBDATTACH_EXAMPLES") == "all"
CASES = int(os.environ.get("NBDATTACH_HOSTILE", "100000" if ALL else "5000"))
FIRST = int(os.environ.get("NBDATTACH_SEED", "0")) or (random.SystemRandom().getrandbits(48) if ALL else 1)
SERVER = Target(host="db1")
HELLO = wire.greeting()
# Text with a str of four times its bytes: one wide character makes all of them wide.
WIDE = "\U0001f4be".encode() + b"w" * 4092


def test_hostile_streams_give_our_errors_only() -> None:
    outcomes = {"ok": 0, "error": 0}
    for seed in range(FIRST, FIRST + CASES):
        one = case(seed)
        try:
            played = play(one.ask(one.target), one.said)
            hold(one, played)
        except Exception as error:
            pytest.fail(f"NBDATTACH_SEED={seed} NBDATTACH_HOSTILE=1: {error!r} from {one}")
        outcomes["error" if played.error else "ok"] += 1
    assert all(count >= CASES // 20 for count in outcomes.values()), f"too one-sided to tell much: {outcomes}"


def hold(one: Case, played: Played[Any]) -> None:
    """True for every conversation, for each of its ends."""
    steps = len(played.notes) + len(played.receives) + len(played.sent)
    assert steps <= 20 + played.heard
    assert max(played.receives) <= handshake.MAX_INFO_REPLY
    if played.error:
        assert 3 <= played.error.exit_code <= 5
        assert str(played.error).isprintable()
        assert played.error.hint.isprintable()
    assert all(note.isprintable() for note in played.notes)


def test_a_case_is_made_again_by_its_seed() -> None:
    assert [case(seed) for seed in range(200)] == [case(seed) for seed in range(200)]


ENDLESS = {
    "information": (handshake.enter, wire.info(wire.GO, 9, b"")),
    "the same size": (handshake.enter, wire.sized(wire.GO)),
    "large information": (handshake.inspect, wire.info(wire.INFO, 9, bytes(60000))),
    "exports": (handshake.catalogue, wire.listed(b"e")),
    "empty names": (handshake.catalogue, wire.listed(b"")),
    "large exports": (handshake.catalogue, wire.listed(WIDE, WIDE)),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_endless_server_is_cut_off(what: str) -> None:
    ask, piece = ENDLESS[what]
    steps: Steps[Any] = ask(SERVER)
    with pytest.raises(BrokenProtocol):
        listen_without_end(steps, itertools.chain([HELLO], itertools.repeat(piece)))


def test_endless_list_for_a_better_message_is_cut_off() -> None:
    said = itertools.chain([HELLO, wire.reply(wire.GO, wire.UNKNOWN)], itertools.repeat(wire.listed(b"e")))
    with pytest.raises(NbdattachError, match="the server has no export named 'x'"):
        listen_without_end(handshake.enter(Target(host="db1", export="x")), said)


def full_list(name: bytes, answer: bytes) -> Iterator[bytes]:
    """As many exports as may be, then `answer` to each question about one."""
    yield HELLO
    yield from itertools.repeat(wire.listed(name), handshake.MAX_EXPORTS)
    yield wire.ack(wire.LIST)
    yield from itertools.repeat(answer)


def test_the_longest_list_ends_after_a_bounded_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "MAX_EXPORTS", handshake.MAX_EXPORTS if ALL else 500)
    answer = wire.info(wire.INFO, 9, b"") * 62 + wire.sized(wire.INFO) + wire.ack(wire.INFO)
    heard = listen_without_end(handshake.catalogue(SERVER), full_list(b"e", answer))
    assert heard < handshake.MAX_EXPORTS * (25 + 64 * 32) + 100


def peak(steps: Steps[Any], said: Iterator[bytes]) -> int:
    """The most memory that `steps` held, in bytes."""
    tracemalloc.start()
    try:
        listen_without_end(steps, said)
    except BrokenProtocol:
        pass
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return most


# A str has up to four bytes a character, and the list is held once.
MOST = 5 * handshake.MAX_LIST_BYTES


def test_endless_list_takes_bounded_memory() -> None:
    said = itertools.chain([HELLO], itertools.repeat(wire.listed(WIDE, WIDE)))
    assert peak(handshake.catalogue(SERVER), said) < MOST


def test_descriptions_told_one_by_one_take_no_more_memory_than_in_a_list() -> None:
    answer = wire.info(wire.INFO, 2, WIDE) + wire.sized(wire.INFO) + wire.ack(wire.INFO)
    assert peak(handshake.catalogue(SERVER), full_list(b"e", answer)) < MOST


def test_endless_information_takes_bounded_memory() -> None:
    said = itertools.chain([HELLO], itertools.repeat(wire.info(wire.GO, 9, bytes(65000))))
    assert peak(handshake.enter(SERVER), said) < MOST
