# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the monitor writes its lines: to the journal, or to the kernel's log. It never waits for either."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Callable
from typing import TypeAlias

Log: TypeAlias = Callable[[str], None]


def to_stderr(line: str) -> None:
    """Writes one line, which systemd puts into the journal. Drops the line if the write would have to wait.

    The journal may be on a device with a server that is away, and that device waits for us.
    """
    writable = select.poll()
    writable.register(2, select.POLLOUT)
    if writable.poll(0):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def kernel_log() -> Log:
    """Writes lines to the kernel's log, for a monitor without a terminal and without a journal of its own.

    It is opened once: later the way to it may lead over a disk that is away, as it does at the end of an initramfs.
    """
    try:
        log = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return lambda _: None

    def tell(line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(log, f"<5>nbdattach: {line}\n".encode(errors="replace"))

    return tell
