# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a look at a disk whose whole content is in memory."""

from __future__ import annotations

from typing import TypeVar

from nbdattach.content import reading
from nbdattach.content.look import look
from nbdattach.content.marks import Content
from nbdattach.content.reading import Look

T = TypeVar("T")


def looked_at(disk: bytes, block: int = 512, known: Content | None = None, check: bool = False) -> Content:
    return run(look(len(disk), block, known, check), disk)


def run(steps: Look[T], disk: bytes) -> T:
    return reading.run(steps, lambda wanted: [disk[at : at + length] for at, length in wanted])
