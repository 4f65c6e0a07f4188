# SPDX-License-Identifier: GPL-2.0-or-later
"""Kills a process that may be stuck in the kernel because of its own connections."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket

from nbdattach.host import procfs, syscalls

# A process that is not stuck ends so soon. In milliseconds, for poll(2).
_ENDS = 1000


def kill(pid: int) -> None:
    """Kills the process. If it does not end, shuts down all stream connections that it had open, in both directions.

    Only the signal if the kernel does not let us do more (pidfd_getfd(2) needs the right to trace the process).
    """
    with contextlib.ExitStack() as stack:
        process = -1
        with contextlib.suppress(OSError):
            process = os.pidfd_open(pid)
            stack.callback(os.close, process)
        held = [stack.enter_context(sock) for sock in _streams(pid, process)] if process >= 0 else []
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if held and not _ends(process):
            for sock in held:
                with contextlib.suppress(OSError):  # not connected
                    sock.shutdown(socket.SHUT_RDWR)


def _streams(pid: int, process: int) -> list[socket.socket]:
    """Duplicates of its stream sockets."""
    found = []
    for number in procfs.sockets_of(pid):
        with contextlib.suppress(OSError):  # closed meanwhile, or not allowed
            sock = socket.socket(fileno=syscalls.pidfd_getfd(process, number))
            if sock.type == socket.SOCK_STREAM:
                found.append(sock)
            else:
                sock.close()
    return found


def _ends(process: int) -> bool:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(_ENDS))
