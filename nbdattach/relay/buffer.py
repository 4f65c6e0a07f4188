# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes of one direction of a relay, between a read and a write."""

from __future__ import annotations

# Bytes on their way in one direction; memory is in use only as far as the traffic needs it.
BUFFER = 128 << 10


class Buffer:
    """A read fills `room` and calls `grow`; a write sends `waiting` and calls `shrink`."""

    def __init__(self) -> None:
        self._view = memoryview(bytearray(BUFFER))
        self._start = self._end = 0

    @property
    def room(self) -> memoryview:
        return self._view[self._end :]

    @property
    def waiting(self) -> memoryview:
        return self._view[self._start : self._end]

    def __bool__(self) -> bool:
        return self._start < self._end

    @property
    def full(self) -> bool:
        return self._end == BUFFER

    def grow(self, count: int) -> None:
        self._end += count

    def shrink(self, count: int) -> None:
        self._start += count
        if self._start == self._end:
            self._start = self._end = 0
