# SPDX-License-Identifier: GPL-2.0-or-later
"""Which file an image is, and locks that keep others from writing it.

QEMU (block/file-posix.c) locks single bytes of an image: 100 + N says "I use permission N", 200 + N says "nobody else
may use it". For a server that takes no such lock, the keeper does. A lock lasts until the last process that has
inherited the file closes it. The keeper imports this module, so it imports next to nothing.
"""

from __future__ import annotations

import os
import stat

from nbdattach.host import syscalls

_USED, _DENIED = 100, 200
# Permissions (enum in include/block/block-common.h): BLK_PERM_CONSISTENT_READ, BLK_PERM_WRITE, BLK_PERM_RESIZE.
_READ, _WRITE, _RESIZE = 0, 1, 3


def identity(status: os.stat_result) -> str:
    """Of the file, or of the block device, whatever names and nodes it has."""
    return f"block:{status.st_rdev}" if stat.S_ISBLK(status.st_mode) else f"{status.st_dev}:{status.st_ino}"


def locked(path: str, read_only: bool) -> int | None:
    """A descriptor that locks the image for one writer, or for readers; None if others have it. Raises OSError.

    A block device that is written is claimed as by a mount: not while it is mounted, or held by another device.
    """
    claim = 0
    if not read_only and stat.S_ISBLK(os.stat(path).st_mode):
        claim = os.O_EXCL
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | claim)
    used = [_READ] if read_only else [_READ, _WRITE]
    denied = [_WRITE, _RESIZE]
    try:
        for byte in [*(_USED + one for one in used), *(_DENIED + one for one in denied)]:
            syscalls.ofd_read_lock(file, byte)
        # First the locks, then the looks: of two that do it at the same time, none sees the image free.
        taken = [*(_DENIED + one for one in used), *(_USED + one for one in denied)]
        if not any(syscalls.ofd_is_locked(file, byte) for byte in taken):
            return file
    except BlockingIOError:
        pass
    os.close(file)
    return None


def claimed(path: str) -> int:
    """A descriptor that claims a block device, for a server that locks it itself. Raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
