# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that plays a script: it drives a protocol generator with bytes fixed beforehand. No sockets, no TLS."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, cast

from nbdattach.connection.stream import Stream
from nbdattach.deadline import Deadline
from nbdattach.errors import ConnectionLost, NbdattachError
from nbdattach.protocol.steps import Note, Receive, Send, StartTls, Step, Steps, T
from nbdattach.protocol.target import Target


@dataclass
class Played(Generic[T]):
    """One conversation. `said` is the server's half, of which `heard` bytes were asked for."""

    said: bytes
    heard: int = 0
    sent: list[bytes | StartTls] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    receives: list[int] = field(default_factory=list)
    outcome: T | None = None
    error: NbdattachError | None = None

    @property
    def unread(self) -> bytes:
        return self.said[self.heard :]


def play(steps: Steps[T], said: bytes) -> Played[T]:
    """Feeds `said` to `steps`; at its end, the connection is lost, as in `Stream`."""
    played: Played[T] = Played(said)
    try:
        step = next(steps)
        while True:
            answer = _answer(played, step)
            step = steps.throw(ConnectionLost("server", "gone")) if answer is None else steps.send(answer)
    except StopIteration as stop:
        played.outcome = stop.value
    except NbdattachError as error:
        played.error = error
    return played


def _answer(played: Played[T], step: Step) -> bytes | None:
    if isinstance(step, Receive):
        played.receives.append(step.size)
        if played.heard + step.size > len(played.said):
            return None
        played.heard += step.size
        return played.said[played.heard - step.size : played.heard]
    if isinstance(step, Note):
        played.notes.append(step.text)
    elif isinstance(step, Send):
        played.sent.append(step.data)
    else:
        played.sent.append(step)
    return b""


class Dripping:
    """As much of a TCP socket as `Stream` uses, which gives one byte per recv."""

    family = socket.AF_INET

    def __init__(self, said: bytes) -> None:
        self._said = io.BytesIO(said)
        self.sent = b""
        self.recvs = 0
        self.options: list[tuple[int, int, int]] = []

    @property
    def unread(self) -> bytes:
        return self._said.read()

    def recv(self, size: int) -> bytes:
        self.recvs += 1
        return self._said.read(min(size, 1))

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def gettimeout(self) -> float | None:
        return None

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.options.append((level, option, value))


def succeeds(make: Callable[[Target], Steps[T]], target: Target, *said: bytes) -> tuple[T, list[bytes | StartTls]]:
    """Result of the conversation, and the bytes that the client sent.

    Holds for each: not a byte is left and none is missing; the same comes out when the bytes drip in one by one.
    """
    played = play(make(target), b"".join(said))
    assert played.error is None, played.error
    assert played.unread == b""
    assert sum(played.receives) == len(b"".join(said))
    outcome = cast(T, played.outcome)
    if not any(isinstance(one, StartTls) for one in played.sent):
        assert drip(make(target), target, b"".join(said)) == (outcome, b"".join(cast(list[bytes], played.sent)))
    return outcome, played.sent


def drip(steps: Steps[T], target: Target, said: bytes) -> tuple[T, bytes]:
    """Through a real `Stream`, one byte per recv: the result, and the bytes that were sent."""
    sock = Dripping(said)
    stream = Stream(cast(socket.socket, sock), target, Deadline(30), lambda _: None)
    outcome = stream.run(steps)
    assert sock.unread == b""
    assert sock.options == [(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)] * sock.recvs
    return outcome, sock.sent


def fails(make: Callable[[Target], Steps[T]], target: Target, *said: bytes) -> tuple[NbdattachError, Played[T]]:
    """The error of the conversation, and all of it."""
    played = play(make(target), b"".join(said))
    assert played.error is not None, f"it succeeded: {played.outcome}"
    return played.error, played
