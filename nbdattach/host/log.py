# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the monitor writes its lines: to the journal, or to the kernel's log. It never waits for either."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from nbdattach.host import kmsg

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
        log = kmsg.open_log()
    except OSError:
        return lambda _: None
    return partial(kmsg.append, log, kmsg.NOTICE)
