# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the monitor writes its lines: to the journal, or to the kernel's log. It never waits for either."""

from __future__ import annotations

import select
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from nbdattach.host import journal, kmsg

# sys/syslog.h
ERR, WARNING, NOTICE, INFO = 3, 4, 5, 6
_IDENTIFIER = "nbdattach"
NO_FIELDS: Mapping[str, str] = MappingProxyType({})


class Write(Protocol):
    """Writes one line of that priority. The journal also gets the fields."""

    def __call__(self, line: str, priority: int = NOTICE, fields: Mapping[str, str] = NO_FIELDS, /) -> None: ...


def to_stderr(line: str, _priority: int = NOTICE, _fields: Mapping[str, str] = NO_FIELDS, /) -> None:
    """Writes one line. Drops the line if the write would have to wait.

    The journal may be on a device with a server that is away, and that device waits for us.
    """
    writable = select.poll()
    writable.register(2, select.POLLOUT)
    if writable.poll(0):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def of_service() -> Write:
    """The journal, if standard error leads there; otherwise standard error."""
    return to_journal if journal.is_stderr() else to_stderr


def to_journal(line: str, priority: int = NOTICE, fields: Mapping[str, str] = NO_FIELDS, /) -> None:
    """Writes an entry; if the journal's socket does not take it, a line on standard error, of the same priority."""
    if not journal.send({"MESSAGE": line, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": _IDENTIFIER, **fields}):
        to_stderr(f"<{priority}>{line}")


def kernel_log() -> Write:
    """Writes lines to the kernel's log, for a monitor without a terminal and without a journal of its own.

    It is opened once: later the way to it may lead over a disk that is away, as it does at the end of an initramfs.
    """
    try:
        log: int | None = kmsg.open_log()
    except OSError:
        log = None

    def write(line: str, priority: int = NOTICE, _fields: Mapping[str, str] = NO_FIELDS, /) -> None:
        if log is not None:
            kmsg.append(log, priority, line)

    return write
