# SPDX-License-Identifier: GPL-2.0-or-later
"""Sockets of another process: shuts down its connections."""

from __future__ import annotations

import contextlib
import os
import socket

from nbdattach.host import procfs, syscalls


def shut_down(pid: int) -> int:
    """Shuts down all stream connections that the process has open, in both directions; returns their number.

    0 also if the kernel does not let us (pidfd_getfd(2) needs the right to trace the process).
    """
    count = 0
    with contextlib.suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            for number in procfs.sockets_of(pid):
                with contextlib.suppress(OSError):  # closed meanwhile, or not connected
                    count += _shut_down(syscalls.pidfd_getfd(process, number))
        finally:
            os.close(process)
    return count


def _shut_down(number: int) -> bool:
    with socket.socket(fileno=number) as sock:
        if sock.type != socket.SOCK_STREAM:
            return False
        sock.shutdown(socket.SHUT_RDWR)
        return True
