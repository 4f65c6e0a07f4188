# SPDX-License-Identifier: GPL-2.0-or-later
"""Sends what was written to a device to its server, and remembers if that failed.

A flush waits for the server, and no signal interrupts it. So `node` has a copy of the process do it, `flush_aside`.
The worker imports this module, so it imports next to nothing.
"""

from __future__ import annotations

import os

from nbdattach.host import bare_files
from nbdattach.kernel.bare_sysfs import partitions
from nbdattach.kernel.leftovers import UNFLUSHED

TYPE_CHECKING = False  # the module typing costs the worker 1 MB
if TYPE_CHECKING:
    from collections.abc import Sequence

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


def flush_aside(path: str, mark: Sequence[str]) -> None:
    """`flush` as the work of a copy: a process that waits for the server cannot be interrupted. Raises OSError.

    `mark` are the arguments of `mark_unflushed`: the command may be gone before the flush fails.
    """
    try:
        os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # kept open until it exits: the device cannot be freed under it
        flush(path)
    except OSError:
        if mark:
            mark_unflushed(*mark)
        raise


def mark_unflushed(state_file: str, identity: str) -> None:
    """Remembers that data may be lost: the kernel reports that only once. `identity`: of the attachment, as JSON."""
    try:
        bare_files.replace(f"{state_file}{UNFLUSHED}", identity)
    except OSError:
        pass
