# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a server takes connections again: a bare connect, for a twentieth of what a whole try costs.

The connection that it makes is for the caller to use: a server may serve one client only, or end with its first one.
"""

from __future__ import annotations

import errno
import select
import socket

from nbdattach.connection.stream import is_to_itself, numeric, reset
from nbdattach.protocol.target import Target

_OVER = select.POLLERR | select.POLLHUP


def reached(target: Target, address: str | None, within: float) -> socket.socket | None:
    """A new connection to the server at that numeric address, or at its Unix socket; None if it does not take it.

    `within`: seconds for the answer of another machine.
    """
    place = (socket.AF_UNIX, target.socket) if target.socket else numeric(target, address) if address else None
    if place is None:
        return None
    try:
        sock = socket.socket(place[0], socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    except OSError:
        return None
    try:
        if _is_connected(sock, place[1], within):
            if not is_to_itself(sock):
                return sock
            reset(sock)
    except OSError:
        pass  # it was reset at once
    sock.close()
    return None


def _is_connected(sock: socket.socket, place: object, within: float) -> bool:
    number = sock.connect_ex(place)  # type: ignore[arg-type]
    if number != errno.EINPROGRESS:
        return number == 0
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    ready = poll.poll(within * 1000)
    return bool(ready) and not ready[0][1] & _OVER
