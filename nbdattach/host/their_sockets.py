# SPDX-License-Identifier: GPL-2.0-or-later
"""Kills a process that may be stuck in the kernel because of its own connections."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable

from nbdattach.host import open_files, syscalls

# A process that is not stuck ends so soon. In milliseconds, for poll(2).
_ENDS = 1000
_STANDARD_FILES = (0, 1, 2)


def kill(pid: int, is_it: Callable[[], bool]) -> bool:
    """Kills the process. If it does not end, shuts down its stream connections, in both directions.

    `is_it` tells whether `pid` is the process that is meant; False if not. If the kernel does not let us do more, the
    process gets only the signal (pidfd_getfd(2) needs the right to trace it).
    """
    with contextlib.ExitStack() as stack:
        process = None
        with contextlib.suppress(OSError):
            process = os.pidfd_open(pid)
            stack.callback(os.close, process)
        if not is_it():  # asked now: from here on, no other process can be taken for it
            return False
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            if process is None:
                os.kill(pid, signal.SIGKILL)
                return True
            held = [stack.enter_context(sock) for sock in _connections(pid, process)]
            signal.pidfd_send_signal(process, signal.SIGKILL)
            if held and not _ends(process):
                for sock in held:
                    with contextlib.suppress(OSError):  # not connected
                        sock.shutdown(socket.SHUT_RDWR)
    return True


def _connections(pid: int, process: int) -> list[socket.socket]:
    """Duplicates of its connections. Standard input, output and error may be sockets of other processes, too.

    So those are left out, by whatever number, unless the process has no other connection.
    """
    sockets = open_files.sockets_of(pid)
    shared = {sockets.get(number) for number in _STANDARD_FILES}
    others = [number for number, name in sockets.items() if name not in shared]
    return _streams(process, others) or _streams(process, list(sockets))


def _streams(process: int, numbers: list[int]) -> list[socket.socket]:
    found = []
    for number in numbers:
        with contextlib.suppress(OSError):  # closed meanwhile, or not allowed
            sock = socket.socket(fileno=syscalls.pidfd_getfd(process, number))
            if sock.type == socket.SOCK_STREAM and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.append(sock)
            else:
                sock.close()
    return found


def _ends(process: int) -> bool:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(_ENDS))
