# SPDX-License-Identifier: GPL-2.0-or-later
"""DEVICE: the name of an nbd block device, as users type it. No I/O."""

from __future__ import annotations

import re

from nbdattach.errors import Malformed
from nbdattach.immutable import immutable
from nbdattach.text import quoted

_DEVICE = re.compile(r"(?:/dev/)?nbd(0|[1-9][0-9]{0,6})", re.ASCII)
_PARTITION = r"(?a)((?:/dev/)?nbd[0-9]+)p[0-9]+"
# The kernel has 20 bits of minor numbers (MINORBITS, linux/kdev_t.h).
MAX_INDEX = (1 << 20) - 1


@immutable
class Device:
    """/dev/nbdN by its index N."""

    index: int

    def __lt__(self, other: Device) -> bool:
        return self.index < other.index

    @property
    def name(self) -> str:
        return f"nbd{self.index}"

    @property
    def path(self) -> str:
        return f"/dev/nbd{self.index}"


def whole_device(text: str) -> str | None:
    """The device that a partition's name belongs to: /dev/nbd0 for /dev/nbd0p1; None for any other name."""
    found = re.fullmatch(_PARTITION, text)
    return found and found[1]


def parse_device(text: str) -> Device:
    """`/dev/nbdN` or `nbdN`; anything else is `Malformed`."""
    match = _DEVICE.fullmatch(text)
    if match and int(match[1]) <= MAX_INDEX:
        return Device(int(match[1]))
    raise no_device(text)


def no_device(text: str) -> Malformed:
    """The error for a text that names no device."""
    if whole := whole_device(text):
        return Malformed(quoted(text), "a partition, not a whole device", f"name the device: {whole}")
    if text.isdigit():
        return Malformed(quoted(text), "not an nbd device", "a port is written HOST:PORT, a device /dev/nbd0")
    return Malformed(quoted(text), "not an nbd device", "a DEVICE is /dev/nbd0, nbd0, /dev/nbd1, ...")
