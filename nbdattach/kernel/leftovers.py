# SPDX-License-Identifier: GPL-2.0-or-later
"""What an attachment leaves behind when it has gone: a size, partitions, our files; and their removal.

Kernel and udev leave them while a program has the device open. So a process of its own, `tidy_main`, may wait for the
last user to go. The worker imports this module, so it imports next to nothing.
"""

from __future__ import annotations

import os
import time

from nbdattach.host import syscalls
from nbdattach.kernel import ioctl
from nbdattach.kernel.bare_sysfs import attribute, is_free, partitions

TYPE_CHECKING = False  # the module typing costs the worker 1 MB
if TYPE_CHECKING:
    from typing import Any

EBUSY = 16
# Files that `state` keeps of an attachment: the ends of their names.
UNFLUSHED = ".unflushed"
ENDED = ".ended"
CONTENT = ".content"
HISTORY = ".history"
STATE_FILES = tuple(f"{end}{new}" for end in ("", UNFLUSHED, ENDED, CONTENT, HISTORY) for new in ("", ".new"))
# Seconds between checks whether the last user of a detached device has gone: it may be a mount of months.
_PATIENT_POLL = 0.5


def clear(kernel: Any, node: int, path: str = "") -> None:
    """Gives the device back. The kernel drops the partitions when it next scans the (now empty) device."""
    for call in (kernel.nbd_clear_que, kernel.nbd_clear_sock):
        _try(call, node)
    # A scan of a device that has kept its size changes nothing, and ends in errors in the kernel's log.
    if is_free(path) or partitions(path):
        _try(kernel.blkrrpart, node)


def _try(call: Any, node: int) -> None:
    try:
        call(node)
    except OSError:
        pass


def forget(state_file: str) -> None:
    """Removes the files that `state` keeps of an attachment, also those half written by a parent that was killed."""
    for end in STATE_FILES:
        try:
            os.unlink(f"{state_file}{end}")
        except OSError:
            pass


def tidied(path: str, state_file: str) -> bool:
    """Removes the leftovers of an attachment that has gone; True if none are left.

    Holds the claim on the device: no process writes that file, nor looks for partitions, without the claim.
    """
    try:
        node = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != EBUSY:
            raise
        return False
    try:
        if not attribute(os.path.basename(path), "pid"):
            forget(state_file)
            clear(ioctl, node, path)
        return is_free(path) and not partitions(path)
    finally:
        os.close(node)


def tidy_main(arguments: list[str]) -> None:
    """Waits until the last user of a detached device has gone, then removes its partitions and our files.

    Arguments: the device, its state file, and the kernel's pid of the old attachment. If another attachment comes
    first, there is nothing left to do.
    """
    path, state_file, pid = arguments
    name = os.path.basename(path)
    try:
        syscalls.flock(os.open(f"/sys/block/{name}", os.O_RDONLY | os.O_CLOEXEC))  # one such process is enough
        while attribute(name, "pid") in ("", pid):
            if is_free(path) and tidied(path, state_file):
                break
            time.sleep(_PATIENT_POLL)
    except OSError:
        pass  # the device itself has gone, or another process waits already
