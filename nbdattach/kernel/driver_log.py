# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds in the kernel's log that a server answers NBD_ESHUTDOWN; the nbd driver reports that nowhere else.

A server that is being shut down may keep its connections and refuse each request (nbdkit does, for as long as a client
stays). The driver fails those requests but considers the connection healthy, so it never reports it as dead. The record
is "block nbd0: Other side returned error (108)" (nbd_handle_reply in drivers/block/nbd.c, Linux 6.1 to 7.3).
"""

from __future__ import annotations

import contextlib
import os
import re

from nbdattach.protocol.constants import NBD_ESHUTDOWN

KMSG = "/dev/kmsg"
# Bytes; one read gives one record (Documentation/ABI/testing/dev-kmsg).
_MAX_RECORD = 8192
_REFUSAL = re.compile(rb";block nbd(\d+): Other side returned error \(%d\)\n" % NBD_ESHUTDOWN)


class DriverLog:
    """Reports devices with a server that is shutting down, from now on. Callers poll `fileno`. Raises OSError."""

    def __init__(self) -> None:
        self._file = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._file, 0, os.SEEK_END)

    def fileno(self) -> int:
        return self._file

    def read(self) -> list[int]:
        """Indices of the devices reported since the last call, each once."""
        found: set[int] = set()
        while True:
            try:
                record = os.read(self._file, _MAX_RECORD)
            except BlockingIOError:
                return sorted(found)
            except BrokenPipeError:  # records were overwritten before we read them; the next read goes on after those
                continue
            if refusal := _REFUSAL.search(record):
                found.add(int(refusal[1]))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._file)
