# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop of a relay: waits until a pump has something to do, and has it do that.

One loop, one thread: two threads must not use an ssl object at once.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import time
from collections import deque
from collections.abc import Callable

from nbdattach.relay.pump import Pump


class Pumps:
    """The loop. Runs in one thread; `add`, `call` and `finish` may be called from others."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.POLLIN)
        self._calls: deque[Callable[[], None]] = deque()
        self._pumps: dict[int, Pump] = {}  # by both numbers
        self._busy: set[Pump] = set()  # with more to do at once
        self._finishing = False
        self._next_look = 0.0

    def call(self, function: Callable[[], None]) -> None:
        """Calls it in the loop's thread, when the loop has handled all events up to now."""
        self._calls.append(function)
        os.eventfd_write(self._wake, 1)

    def add(self, pump: Pump) -> None:
        def take() -> None:
            self._pumps[pump.kernel_number] = self._pumps[pump.server_number] = pump
            self._work_on(pump)

        self.call(take)

    def finish(self) -> None:
        """`run` returns when the last connection is over."""

        def end() -> None:
            self._finishing = True

        self.call(end)

    def run(self) -> None:
        while self._pumps or self._calls or not self._finishing:
            # One at a time, and before poll(2), so that it comes after all that had happened when it was asked for.
            call = self._calls.popleft() if self._calls else None
            touched, self._busy = self._busy, set()
            for number, events in self._poll.poll(0 if call or touched else self._patience()):
                if number == self._wake:
                    os.eventfd_read(self._wake)
                    continue
                pump = self._pumps[number]
                if number == pump.kernel_number:
                    pump.kernel_is_ready(events)
                else:
                    pump.server_is_ready()
                touched.add(pump)
            touched |= {pump for pump in self._pumps.values() if pump.seconds_left == 0}
            touched |= self._look()
            for pump in touched:
                self._work_on(pump)
            if call:
                call()

    def _patience(self) -> float | None:
        """Milliseconds."""
        left = [pump.seconds_left for pump in self._pumps.values()]
        left += [pump.look_again for pump in self._pumps.values()]
        seconds = min((one for one in left if one is not None), default=math.inf)
        return None if math.isinf(seconds) else seconds * 1000 + 1

    def _look(self) -> set[Pump]:
        """Checks each server, when it is time; returns the pumps that may have something to do after that."""
        pumps = set(self._pumps.values())
        if time.monotonic() < self._next_look:
            return set()
        for pump in pumps:
            pump.look()
        self._next_look = time.monotonic() + min((pump.look_again for pump in pumps), default=0.0)
        return pumps

    def _work_on(self, pump: Pump) -> None:
        if pump.step():
            self._busy.add(pump)
        for number, events, closed in (
            (pump.kernel_number, pump.kernel_events, pump.over),
            (pump.server_number, pump.server_events, pump.over or pump.lost),
        ):
            if self._pumps.get(number) is not pump:
                continue  # closed before; the number belongs to another connection now
            if closed:
                del self._pumps[number]
            if closed or events is None:
                with contextlib.suppress(KeyError):
                    self._poll.unregister(number)
            else:
                self._poll.register(number, events)
