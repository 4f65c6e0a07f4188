# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers that mean harm: conversations of a valid server, and changes to them. Seeded; no sockets."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import wire

from nbdattach.protocol import handshake
from nbdattach.protocol.steps import Receive, Steps, T
from nbdattach.protocol.target import Target

ASKERS: tuple[Callable[[Target], Steps[Any]], ...] = (handshake.enter, handshake.inspect, handshake.catalogue)
TARGETS = tuple(Target(host="db1", export=name, tls=tls) for name in ("", "disk", "a\udcff") for tls in (False, True))
NUMBERS = (0, 1, 2, 3, 4, 10, 124, 255, 256, 4095, 4096, 4097, 8196, 8197, 65535, 65536, 65537, 1 << 31, (1 << 32) - 1)
WORDS = (b"", b"disk", b"\x1b[2J", b"\xff\xfe", "\u202e%s{option}'\\".encode(), b"w" * 4096, b"w" * 5000)
OPTIONS = (wire.LIST, wire.INFO, wire.GO, wire.STARTTLS, wire.EXPORT_NAME, 0, 1 << 31)
ERRORS = (*range(wire.UNSUP, wire.TOO_BIG + 1), 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Case:
    """One conversation, made again by its number."""

    ask: Callable[[Target], Steps[Any]]
    target: Target
    said: bytes


def case(seed: int) -> Case:
    rng = random.Random(seed)
    ask, target = rng.choice(ASKERS), rng.choice(TARGETS)
    pieces = _conversation(rng, ask, target)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 5))):
        rng.choice(_MUTATIONS)(rng, pieces)
    return Case(ask, target, b"".join(pieces))


def _conversation(rng: random.Random, ask: object, target: Target) -> list[bytes]:
    style = rng.randrange(10)
    if style == 0:
        return [wire.oldstyle(rng.getrandbits(64), rng.choice((3, 0xFFFF, 0x10003)))]
    if style == 1:
        return [wire.greeting(rng.choice((0, 2))), wire.exported(zeroes=wire.ZEROES)]
    pieces = [wire.greeting(rng.choice((1, 3, 3, 3, 0xFFFF)))]
    if target.tls:
        pieces.append(wire.ack(wire.STARTTLS))
    if ask is handshake.catalogue:
        return [*pieces, *_list(rng), *_answers(rng, wire.INFO)]
    if ask is handshake.inspect:
        if rng.random() < 0.5:
            return [*pieces, *_answers(rng, wire.INFO)]
        empty = [wire.sized(wire.INFO, 0), wire.ack(wire.INFO)]
        pieces += rng.choice(([wire.reply(wire.INFO, wire.UNSUP, rng.choice(WORDS))], empty))
    if rng.random() < 0.5:
        return [*pieces, *_answers(rng, wire.GO)]
    refusal = wire.reply(wire.GO, rng.choice((wire.UNSUP, wire.UNKNOWN, rng.choice(ERRORS))), rng.choice(WORDS))
    return [*pieces, refusal, *_list(rng), wire.exported(zeroes=wire.ZEROES)]


def _answers(rng: random.Random, option: int) -> list[bytes]:
    told = [
        wire.sized(option, rng.getrandbits(64), rng.getrandbits(16)),
        wire.blocks(option, 1 << rng.randrange(18), 4096, rng.getrandbits(32)),
        wire.info(option, rng.randrange(1, 6), rng.choice(WORDS)),
    ]
    return [*rng.sample(told, rng.randint(1, 3)), wire.ack(option)]


def _list(rng: random.Random) -> list[bytes]:
    if rng.random() < 0.1:
        return [wire.reply(wire.LIST, rng.choice(ERRORS), rng.choice(WORDS))]
    listed = [wire.listed(rng.choice(WORDS), rng.choice(WORDS)) for _ in range(rng.randrange(3))]
    return [*listed, wire.listed(b"disk"), wire.ack(wire.LIST)]


def _where(rng: random.Random, pieces: list[bytes]) -> int:
    """Rather not in the greeting: a broken one ends it all."""
    return rng.randrange(len(pieces)) or rng.randrange(len(pieces))


def _flip(rng: random.Random, pieces: list[bytes]) -> None:
    at = _where(rng, pieces)
    piece = bytearray(pieces[at] or b"\0")
    piece[rng.randrange(len(piece))] ^= 1 << rng.randrange(8)
    pieces[at] = bytes(piece)


def _number(rng: random.Random, pieces: list[bytes]) -> None:
    """Another 32-bit number: in a header that is the option, the type, the length, or the beginning of the data."""
    at = _where(rng, pieces)
    where = rng.choice((8, 12, 16, 20))
    pieces[at] = pieces[at][:where] + struct.pack(">I", rng.choice(NUMBERS)) + pieces[at][where + 4 :]


def _retype(rng: random.Random, pieces: list[bytes]) -> None:
    option, kind = rng.choice(OPTIONS), rng.choice((wire.ACK, wire.SERVER, wire.INFORMATION, *ERRORS))
    pieces[_where(rng, pieces)] = wire.reply(option, kind, rng.choice(WORDS))


def _cut(rng: random.Random, pieces: list[bytes]) -> None:
    at = _where(rng, pieces)
    pieces[at] = pieces[at][: rng.randrange(len(pieces[at]) + 1)]
    del pieces[at + 1 :]


def _repeat(rng: random.Random, pieces: list[bytes]) -> None:
    at = _where(rng, pieces)
    pieces[at:at] = [pieces[at]] * rng.choice((1, 2, 70))


def _drop(rng: random.Random, pieces: list[bytes]) -> None:
    if len(pieces) > 1:
        del pieces[_where(rng, pieces)]


def _swap(rng: random.Random, pieces: list[bytes]) -> None:
    one, other = _where(rng, pieces), _where(rng, pieces)
    pieces[one], pieces[other] = pieces[other], pieces[one]


def _junk(rng: random.Random, pieces: list[bytes]) -> None:
    pieces.insert(_where(rng, pieces) + 1, rng.randbytes(rng.choice((1, 4, 20, 300))))


_MUTATIONS = (_flip, _number, _number, _retype, _retype, _cut, _repeat, _drop, _swap, _junk)


def listen_without_end(steps: Steps[T], said: Iterator[bytes]) -> int:
    """Feeds `steps` from a server that never stops; the bytes it took. Raises the error of the generator."""
    heard, buffer = 0, bytearray()
    try:
        step = next(steps)
        while True:
            answer = b""
            if isinstance(step, Receive):
                while len(buffer) < step.size:
                    buffer += next(said)
                answer = bytes(buffer[: step.size])
                del buffer[: step.size]
                heard += step.size
            step = steps.send(answer)
    except StopIteration:
        return heard
