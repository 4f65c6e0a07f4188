# SPDX-License-Identifier: GPL-2.0-or-later
"""Loop devices: which file each one has, by its inode and not by a name that may lead elsewhere by now (loop(4))."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Collection

_BLOCK = "/sys/block"
# linux/loop.h, and the first fields of struct loop_info64: lo_device, lo_inode, lo_rdevice
_LOOP_GET_STATUS64 = 0x4C05
_SIZE = 232
_FIRST = struct.Struct("=QQQ")


def loop_with(identities: Collection[str]) -> str:
    """The name of a loop device that has one of these files (`bare_files.identity`); empty if none has."""
    with contextlib.suppress(OSError):
        for name in os.listdir(_BLOCK):
            if name.startswith("loop") and file_of(name) in identities:
                return name
    return ""


def file_of(name: str) -> str:
    """The identity of the file or device that the loop device has; empty if it has none, or we may not ask."""
    if not os.path.exists(f"{_BLOCK}/{name}/loop/backing_file"):
        return ""
    try:
        fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        device, inode, rdev = _FIRST.unpack_from(fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_SIZE)))
    except OSError:
        return ""
    finally:
        os.close(fd)
    return f"block:{_number(rdev)}" if rdev else f"{_number(device)}:{inode}"


def _number(encoded: int) -> int:
    """As stat(2) has it: the ioctl encodes it as the kernel does for user space (huge_encode_dev, linux/kdev_t.h)."""
    return os.makedev(encoded >> 8 & 0xFFF, encoded & 0xFF | encoded >> 12 & 0xFFF00)
