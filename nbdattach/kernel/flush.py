# SPDX-License-Identifier: GPL-2.0-or-later
"""Sends what was written to a device to its server, and remembers if that failed.

A flush waits for the server, and no signal interrupts it. So `node` starts it as a process of its own, `flush_main`.
The worker imports this module, so it imports next to nothing.
"""

from __future__ import annotations

import os
import sys

from nbdattach.host import bare_files
from nbdattach.kernel.bare_sysfs import partitions
from nbdattach.kernel.leftovers import UNFLUSHED

ENOENT = 2


def flush(path: str) -> None:
    """Sends all data written to the device, and to its partitions with caches of their own, to the server."""
    for place in [*partitions(path), path]:
        try:
            fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == ENOENT and place != path:
                continue  # a partition without a node cannot have been written through one
            raise
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def flush_main(arguments: list[str]) -> None:
    """`flush` as a process of its own: a process that waits for the server cannot be interrupted. Exits with the errno.

    The arguments after the device are those of `mark_unflushed`, because the caller may be gone before the flush fails.
    """
    path, *mark = arguments
    try:
        os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # kept open until we exit: it cannot be freed under this flush
        flush(path)
    except OSError as error:
        if mark:
            mark_unflushed(*mark)
        sys.exit(error.errno or 1)


def mark_unflushed(state_file: str, identity: str) -> None:
    """Remembers that data may be lost: the kernel reports that only once. `identity`: of the attachment, as JSON."""
    try:
        bare_files.replace(f"{state_file}{UNFLUSHED}", identity)
    except OSError:
        pass
