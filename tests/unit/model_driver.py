# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver as a model that holds real sockets: nbd_reconnect_socket, wait_for_reconnect, recv_work and
nbd_xmit_timeout of nbd.c, with one request at a time, on the clock of a `world.World`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Protocol

from nbdattach.monitor.outage import FRUITLESS

MIB = 1 << 20
ON_LOSS = 300.0
# The longest delay of the monitor, with all its pauses and attempts; and if it could see all the time that no
# connection lives, no server is silent, and the driver is not late.
_MONITOR_IS_LATE, _AT_LEISURE = 60.0, 5.0
_ROUNDED = 1e-6
_LIMIT = struct.pack("ll", 3, 0)


class Wrong(AssertionError):
    """An event that must never happen."""


class Around(Protocol):
    """The world around the driver."""

    @property
    def now(self) -> float: ...

    @property
    def silent(self) -> bool:
        """Whether a server does not answer: a connection to it does not serve."""

    def happens(self) -> None:
        """Called before each event at which the monitor may be killed."""

    def announce(self) -> None:
        """The driver sends NBD_CMD_LINK_DEAD."""

    def taken(self, number: int) -> bool:
        """The driver takes that socket in the place of a dead one. Returns whether it leads to a server."""


@dataclasses.dataclass(eq=False)
class Slot:
    """One connection of the driver."""

    sock: socket.socket
    leads_to_a_server: bool = True  # it is not a scout
    ended: float = math.inf  # when the connection ended
    dead: bool = False  # the driver knows it


@dataclasses.dataclass(eq=False)
class Request:
    number: int
    flush: bool
    began: float
    slot: Slot | None = None  # the connection over which it was sent
    sent: float = 0.0
    waits: float = math.inf  # since when it waits for a connection


class Driver:
    """`late`: the seconds that the driver needs to notice that a connection has ended."""

    def __init__(
        self, world: Around, changed: Callable[[], None], on_loss: float, resend: float, timeout: bool
    ) -> None:
        self._world = world
        self._changed = changed
        self._timeout = timeout  # whether the device has one
        self._resend = resend  # a request that was sent so long ago over a connection that is dead by now is sent again
        self.slots: list[Slot] = []
        self.late = self._latest = 0.0
        self.request: Request | None = None
        self.done: list[int] = []
        self.failed: list[int] = []
        self.size = MIB
        self._on_loss = self._patience = on_loss  # dead_conn_timeout
        # Since when no connection has served; and when the driver took the last one.
        self._ill: float | None = None
        self._plain = True  # the loss, if there is one: no server was silent before, for which --dead-peer is waited
        self._gone_since = math.inf  # since when the monitor could see that no connection lives
        self._taken = -math.inf
        self._was_idle = True  # a look of the monitor since then has found no request
        self.unseen = 0.0  # for how long the monitor was at orders, which come first, since requests were last served
        self.watched_since = -math.inf  # start of this monitor, which cannot know of earlier failures

    @property
    def in_flight(self) -> int:
        """Like that file in /sys: without flushes, and without requests that wait for a connection."""
        return int(self.request is not None and self.request.slot is not None and not self.request.flush)

    @property
    def connected(self) -> bool:
        return not any(slot.dead or has_ended(slot.sock) for slot in self.slots)

    @property
    def _lives(self) -> bool:
        return any(slot.leads_to_a_server and not slot.dead and not has_ended(slot.sock) for slot in self.slots)

    def monitor_looks(self) -> None:
        self._was_idle = self._was_idle or not self.request
        if self._plain and not self._lives:
            self._gone_since = min(self._gone_since, self._world.now)

    def attach(self, sockets: list[socket.socket]) -> None:
        self.slots = [Slot(sock) for sock in sockets]

    # -- requests --------------------------------------------------------------------------------------------------

    def submit(self, number: int, flush: bool = False) -> None:
        self.request = Request(number, flush, self._world.now)
        self._send(self.request)

    def _send(self, request: Request) -> None:
        for slot in self.slots:
            if not slot.dead:
                try:
                    slot.sock.send(request.number.to_bytes(8, "big"), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                except OSError:
                    slot.dead = True
                    self._world.announce()
                else:
                    request.slot, request.sent, request.waits = slot, self._world.now, math.inf
                    break
        else:
            request.slot = None
            request.waits = min(request.waits, self._world.now)
        self._changed()

    def _complete(self, number: int, where: list[int]) -> None:
        if self.request and self.request.number == number:
            where.append(number)
            self.request = None
            self._changed()

    # -- events ----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        now = self._world.now
        self._latest = max(self._latest, self.late)
        for slot in self.slots:
            if not slot.dead:
                self._read(slot)
            if slot.ended == math.inf and has_ended(slot.sock):
                slot.ended = now
            if now >= slot.ended + self.late and not slot.dead:
                slot.dead = True
                self._world.announce()
        if not self._lives and self._ill is None:
            self._ill = now
        if self._lives or self._world.silent:
            self._gone_since, self._plain = math.inf, not self._world.silent
        if self._lives and self._was_idle and now >= self._taken + FRUITLESS and not self._world.silent:
            self._ill = None
        request = self.request
        if request and request.slot and request.slot.dead and now >= request.sent + self._resend:
            self._send(request)
        if request and request is self.request and now >= request.waits + self._patience:
            self._complete(request.number, self.failed)

    def _have_patience(self, seconds: float) -> None:
        """Sets how long requests wait for a connection. Raises `Wrong` if they would fail too soon."""
        began = self._world.now if self._ill is None else self._ill
        if self.request and len(self.slots) > 1:  # it was sent over each of them, and none has served it
            began = min(began, self.request.began)
        age = self._world.now - began
        if seconds < self._on_loss and age < self._on_loss - _ROUNDED:
            raise Wrong(f"requests are to fail {age:g} s after the loss of a connection")
        self._patience = seconds

    def begin_anew(self) -> None:
        """A later outage is a new one."""
        self._ill = None if self._lives else self._world.now

    def see_that_nothing_waits_for_ever(self) -> None:
        """Called after each look of the monitor."""
        waits = self.request is not None and self.request.slot is None
        began = math.inf if self._ill is None else max(self._ill, self.watched_since)
        gone = max(self._gone_since, self.watched_since)
        late = min(began + self.unseen + _MONITOR_IS_LATE, gone + self._latest + _AT_LEISURE)
        if waits and self._world.now > late + self._on_loss:
            raise Wrong("a request waits for a connection though --on-loss has passed")

    def _read(self, slot: Slot) -> None:
        with contextlib.suppress(OSError):
            while data := slot.sock.recv(8, socket.MSG_DONTWAIT):
                if len(data) == 8:  # messages of a scout are shorter
                    self._complete(int.from_bytes(data, "big"), self.done)
                    self._ill, self.unseen = None, 0.0

    # -- messages --------------------------------------------------------------------------------------------------

    def reconfigure(
        self,
        _index: int,
        _backend: str,
        *,
        sockets: Sequence[int] = (),
        size: int | None = None,
        timeout: int | None = None,
        dead_conn_timeout: int | None = None,
    ) -> None:
        self._world.happens()
        self.look()
        if size is not None:
            if self.request:  # the kernel would wait for it, and handle no other message
                raise Wrong("a size while a request is under way")
            self.size = size
            self._changed()
        if timeout is not None and not self._timeout:
            raise Wrong("a timeout, at which a request is sent again to a server that still works on it")
        if dead_conn_timeout is not None:
            self._have_patience(dead_conn_timeout)
        for number in sockets:
            self._take(number)
        if self.request and self.request.slot is None and not all(slot.dead for slot in self.slots):
            self._send(self.request)
        self.look()

    def _take(self, number: int) -> None:
        place = next((index for index, slot in enumerate(self.slots) if slot.dead), None)
        if place is None:
            return
        fresh = Slot(socket.socket(fileno=os.dup(number)), self._world.taken(number))
        if self._timeout:
            fresh.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _LIMIT)
        self.slots[place].sock.close()
        self.slots[place] = fresh
        self._taken = self._world.now
        self._was_idle = False


def has_ended(sock: socket.socket) -> bool:
    """Whether one of the two ends sends no more."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
