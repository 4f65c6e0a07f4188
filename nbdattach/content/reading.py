# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads that a look at a disk asks for, and what it has read. Whoever runs the look does the I/O.

A look is a generator: it yields ranges that it needs next, all at once, and is resumed when they are in its `Seen`. So
the same look works over a connection to a server and on an attached device.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeAlias, TypeVar

T = TypeVar("T")

# Offset and length in bytes.
Range: TypeAlias = tuple[int, int]
# What is to be read next; the answer has the same order.
Look: TypeAlias = Generator[list[Range], list[bytes], T]


def run(look: Look[T], read: Callable[[list[Range]], list[bytes]]) -> T:
    """What the look finds. `read` does its I/O, and may raise."""
    try:
        wanted = next(look)
        while True:
            wanted = look.send(read(wanted))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def together(looks: Sequence[Look[T]]) -> Look[list[T]]:
    """The results of several looks, which read at the same time: as many rounds as the longest of them."""
    results: dict[int, T] = {}
    wanted: dict[int, list[Range]] = {}

    def go_on(number: int, answers: list[bytes] | None) -> None:
        try:
            wanted[number] = looks[number].send(answers)  # type: ignore[arg-type] # None starts it
        except StopIteration as stop:
            results[number] = stop.value

    for number in range(len(looks)):
        go_on(number, None)
    while wanted:
        asked, wanted = wanted, {}
        answers = iter((yield [one for ranges in asked.values() for one in ranges]))
        for number, ranges in asked.items():
            go_on(number, [next(answers) for _ in ranges])
    return [results[number] for number in range(len(looks))]


class Seen:
    """Parts of a disk. `size` in bytes; `block` in bytes: all reads are multiples of it."""

    def __init__(self, size: int, block: int) -> None:
        self.size = size
        self._block = block
        self._parts: dict[int, bytes] = {}

    def read(self, ranges: Iterable[Range]) -> Look[None]:
        """Asks for those that are within the disk, in whole blocks."""
        wanted = [whole for one in ranges if (whole := self._whole(one)) and not self.has(*one)]
        if wanted:
            for (offset, _), data in zip(wanted, (yield wanted), strict=True):
                if len(data) > len(self._parts.get(offset, b"")):
                    self._parts[offset] = data

    def _whole(self, wanted: Range) -> Range | None:
        offset, length = wanted
        begin = offset - offset % self._block
        end = min(offset + length + -(offset + length) % self._block, self.size - self.size % self._block)
        return (begin, end - begin) if offset >= 0 and begin < end else None

    def has(self, offset: int, length: int) -> bool:
        return len(self.at(offset, length)) == length

    def at(self, offset: int, length: int) -> bytes:
        """Fewer bytes, or none, if they were not read."""
        best = b""
        for begin, data in self._parts.items():
            if begin <= offset < begin + len(data):
                found = data[offset - begin : offset - begin + length]
                best = max(best, found, key=len)
        return best

    def unpack(self, form: str, offset: int) -> tuple[int, ...] | None:
        """Numbers in that form of `struct`, at that offset; None if they were not read."""
        data = self.at(offset, struct.calcsize(form))
        return struct.unpack(form, data) if len(data) == struct.calcsize(form) else None

    def number(self, form: str, offset: int) -> int:
        """0 if it was not read."""
        found = self.unpack(form, offset)
        return found[0] if found else 0
