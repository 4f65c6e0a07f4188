# SPDX-License-Identifier: GPL-2.0-or-later
"""Marks this process for systemd as one that a disk depends on, so that the end of a shutdown does not kill it.

Before the last file systems are unmounted, systemd kills all processes that are left, except root's with a command line
that begins with @ (https://systemd.io/ROOT_STORAGE_DAEMONS). But it stops and continues all of them, which ends
NBD_DO_IT: the mark lets a worker end in peace; it does not keep its device. A worker imports this: nothing but `os`.
"""

from __future__ import annotations

import os

_ARG_START = 45  # field 48 of proc_pid_stat(5), counted from the one after the name
_MARK = b"@"
_first = b""  # the byte that the mark replaced


def outlive(wanted: bool = True) -> None:
    """Sets the mark, or takes it back. If that fails, all else goes on as before."""
    global _first
    if wanted == bool(_first):
        return
    try:
        with open("/proc/self/stat", "rb") as file:
            place = int(file.read().rpartition(b")")[2].split()[_ARG_START])
        memory = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
        try:
            before = os.pread(memory, 1, place)
            os.pwrite(memory, _MARK if wanted else _first, place)
        finally:
            os.close(memory)
    except (OSError, IndexError, ValueError):
        return
    _first = before if wanted else b""
