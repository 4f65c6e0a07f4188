# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a look at a disk whose whole content is in memory."""

from __future__ import annotations

from typing import TypeVar

from nbdattach.content.look import look
from nbdattach.content.marks import Content
from nbdattach.content.reading import Look, Range

T = TypeVar("T")


def looked_at(disk: bytes, block: int = 512, known: Content | None = None, check: bool = False) -> Content:
    return run(look(len(disk), block, known, check), disk)


def run(steps: Look[T], disk: bytes) -> T:
    def part(wanted: Range) -> bytes:
        return disk[wanted[0] : wanted[0] + wanted[1]]

    answers: list[bytes] | None = None
    try:
        while True:
            answers = [part(one) for one in steps.send(answers)]  # type: ignore[arg-type] # None starts it
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
