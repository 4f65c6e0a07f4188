# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks that keep others from writing an image.

QEMU (block/file-posix.c) locks single bytes of an image: 100 + N says "I use permission N", 200 + N says "nobody else
may use it". The keeper takes these locks for its servers. A lock lasts until the last process that has
inherited the file closes it. The keeper imports this module, so it imports next to nothing.
"""

from __future__ import annotations

import os
import stat

from nbdattach.host import syscalls

TYPE_CHECKING = False  # the module typing costs 1 MB
if TYPE_CHECKING:
    from collections.abc import Sequence

EBUSY = 16
_USED, _DENIED = 100, 200
# Permissions (enum in include/block/block-common.h): BLK_PERM_CONSISTENT_READ, BLK_PERM_WRITE, BLK_PERM_RESIZE.
_READ, _WRITE, _RESIZE = 0, 1, 3


class Locked(OSError):
    """Another program has it; the text is for users."""


def all_locked(wanted: Sequence[tuple[str, str]]) -> list[int]:
    """A descriptor for each path, which locks it, to "read" or to "write". Raises `Locked`, and OSError; then none is.

    A block device that is written is also claimed as by a mount: not while it is mounted, or held by another device.
    "hold" does that, too, to read it.
    """
    found: list[int] = []
    try:
        for path, how in wanted:
            found.append(_locked(path, how))
    except BaseException:
        for file in found:
            os.close(file)
        raise
    return found


def _locked(path: str, how: str) -> int:
    claim = os.O_EXCL if how != "read" and stat.S_ISBLK(os.stat(path).st_mode) else 0
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | claim)
    except OSError as error:
        if error.errno != EBUSY:
            raise
        raise Locked(f"Failed to get an exclusive lock of {path}: it is mounted, or held by a device") from None
    if _is_locked_by(file, how != "write"):
        return file
    os.close(file)
    raise Locked(f"Failed to get the lock of {path} that QEMU's programs take")


def _is_locked_by(file: int, read_only: bool) -> bool:
    """Locks the image for one writer, or for readers; False if others have it."""
    used = [_READ] if read_only else [_READ, _WRITE, _RESIZE]
    denied = [_WRITE, _RESIZE]
    try:
        for byte in [*(_USED + one for one in used), *(_DENIED + one for one in denied)]:
            syscalls.ofd_read_lock(file, byte)
    except BlockingIOError:
        return False
    # First the locks, then the looks: of two that do it at the same time, none sees the image free.
    taken = [*(_DENIED + one for one in used), *(_USED + one for one in denied)]
    return not any(syscalls.ofd_is_locked(file, byte) for byte in taken)
