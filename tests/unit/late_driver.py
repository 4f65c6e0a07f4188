# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver with one connection, as a family that takes RECONFIGURE: a model of nbd_reconnect_socket in nbd.c."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Sequence
from typing import Any

from model_driver import has_ended


class LateDriver:
    """Takes a socket if its connection is dead, and drops it in silence otherwise.

    It sees that its first connection has ended only at the message number `first`, and that any later one has ended
    only `late` seconds after that, as on a busy machine. The seconds are those of its clock, so a test takes none.
    """

    def __init__(self, first: int = 1, late: float = 0) -> None:
        self.messages: list[dict[str, Any]] = []
        self.clock = _Clock(self)
        self._first, self._late = first, late
        self._dead = False
        self._mine: socket.socket | None = None
        self._ended = math.inf  # when it was

    def reconfigure(self, _index: int, _backend: str, *, sockets: Sequence[int] = (), **rest: Any) -> None:
        told = {name: value for name, value in rest.items() if value is not None}
        self.messages.append({"sockets": len(sockets), **told})
        self.look()
        if len(self.messages) == self._first:
            self.notice()
        for number in sockets:
            if self._dead:
                self._dead, self._ended = False, math.inf
                self._mine = socket.socket(fileno=os.dup(number))

    def look(self) -> None:
        """At its connection, as time passes."""
        now = self.clock.monotonic()
        if self._mine and self._ended == math.inf and _has_ended(self._mine):
            self._ended = now
        if now >= self._ended + self._late:
            self.notice()

    def notice(self) -> None:
        """That its connection is dead."""
        self._dead = True

    def has(self, sock: socket.socket) -> bool:
        """Whether this is its connection."""
        mine = self._mine
        return mine is not None and os.fstat(mine.fileno()) == os.fstat(sock.fileno())


class _Clock:
    """In the place of the module time."""

    def __init__(self, driver: LateDriver) -> None:
        self._driver = driver
        self._now = 1000.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._driver.look()
        self._now += seconds
        self._driver.look()


def _has_ended(sock: socket.socket) -> bool:
    """Whether the other end will send no more; reads the data that it has sent, as the driver does."""
    if not has_ended(sock):
        return False
    try:
        while sock.recv(16, socket.MSG_DONTWAIT):
            pass
    except OSError:
        pass
    return True
