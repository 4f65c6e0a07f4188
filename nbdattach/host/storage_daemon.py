# SPDX-License-Identifier: GPL-2.0-or-later
"""The mark by which systemd knows, at the very end of a shutdown, a process that a disk depends on.

What is left then is killed, before the last file systems are unmounted; but not what root runs with a command line that
begins with @ (https://systemd.io/ROOT_STORAGE_DAEMONS). All are stopped and continued, though, which ends NBD_DO_IT:
the mark lets a worker end in peace, not its device live on. A worker imports this: nothing but `os`.
"""

from __future__ import annotations

import os

_ARG_START = 45  # field 48 of proc_pid_stat(5), counted from the one after the name
_MARK = b"@"
_first = b""  # what the mark stands on


def outlive(wanted: bool = True) -> None:
    """Sets the mark, or takes it back. Where that cannot be done, everything else goes on as ever."""
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
