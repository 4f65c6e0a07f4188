# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's log, for processes of ours that have neither a terminal nor a journal.

The worker imports this module, so it imports nothing but `os`.
"""

from __future__ import annotations

import os

KMSG = "/dev/kmsg"
# linux/kern_levels.h: KERN_WARNING, KERN_NOTICE
WARNING = 4
NOTICE = 5


def open_log() -> int:
    """Its descriptor, for `append`. Raises OSError."""
    return os.open(KMSG, os.O_WRONLY | os.O_CLOEXEC)


def append(log: int, level: int, line: str) -> None:
    """Writes one line. If the kernel does not take it, it is lost."""
    try:
        os.write(log, f"<{level}>nbdattach: {line}\n".encode(errors="replace"))
    except OSError:
        pass


def write(level: int, line: str) -> None:
    """Opens the log for one line."""
    try:
        log = open_log()
    except OSError:
        return
    append(log, level, line)
    os.close(log)
