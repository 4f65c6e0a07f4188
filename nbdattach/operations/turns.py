# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads that attach devices at the same time take turns at the part that needs a CPU.

Each attachment has a deadline for what the kernel and the server do. If 64 threads share one CPU, most of that time
passes while a thread waits for the others, and the server is idle. So only a few are at that part at a time.

A turn is a courtesy: if none ends for a while, those that have one wait for servers that do not answer, and need no
CPU. Then as many others go on.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Beyond one for each CPU, because a turn has short waits of its own: for the server, and for udev.
_SPARE = 2
# Seconds in which no turn has begun or ended.
_STALLED = 2.0


class Turns:
    """So many at a time, or more if they do not go on."""

    def __init__(self, count: int, stalled: float = _STALLED) -> None:
        self._count = self._limit = count
        self._stalled = stalled
        self._working = 0
        self._moved = -stalled
        self._changed = threading.Condition()

    @contextmanager
    def one(self) -> Iterator[None]:
        self._begin()
        try:
            yield
        finally:
            self._end()

    def _begin(self) -> None:
        with self._changed:
            while self._working >= self._limit:
                patience = self._moved + self._stalled - time.monotonic()
                if patience > 0:
                    self._changed.wait(patience)
                else:
                    self._limit += self._count
                    self._changed.notify_all()
            self._working += 1
            self._moved = time.monotonic()

    def _end(self) -> None:
        with self._changed:
            self._working -= 1
            self._limit = max(self._count, self._limit - 1)
            self._moved = time.monotonic()
            self._changed.notify()


TURNS = Turns((os.cpu_count() or 1) + _SPARE)
