# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls in which the kernel may wait for a silent server without end, and which no signal interrupts.

Each is the work of a copy of the process that needs the result (`blocking`), which can give up and exit.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Sequence

from nbdattach.host import syscalls


def open_path(channel: socket.socket, flags: int, path: str) -> None:
    """Passes the descriptor on. Raises OSError."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    channel.sendmsg([b"0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))])


def write_back(channel: socket.socket, paths: Sequence[str]) -> None:
    """Opens the paths and answers with the errno of the first one, or of another one that exists.

    Then at each message it writes their dirty pages to the server, and answers with the first errno.
    """
    opened, failed = [], 0
    for path in paths:
        try:
            opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            if path == paths[0] or error.errno not in (errno.ENOENT, errno.ENXIO):
                failed = failed or error.errno or 1
    channel.send(b"%d" % failed)
    while channel.recv(1):
        failed = 0
        for number in opened:
            try:
                syscalls.sync_file_range(number)
            except OSError as error:
                failed = failed or error.errno or 1
        channel.send(b"%d" % failed)
