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

# Seconds for the answer of another machine. It costs nothing to wait, and the next probe is later than that.
_ANSWER_SECONDS = 0.1
_OVER = select.POLLERR | select.POLLHUP


def reached(target: Target, address: str | None) -> socket.socket | None:
    """A new connection to the server at that numeric address, or at its Unix socket; None if there is none at once."""
    place = (socket.AF_UNIX, target.socket) if target.socket else numeric(target, address) if address else None
    if place is None:
        return None
    try:
        sock = socket.socket(place[0], socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    except OSError:
        return None
    if _is_connected(sock, place[1]):
        return sock
    sock.close()
    return None


def _is_connected(sock: socket.socket, place: object) -> bool:
    try:
        number = sock.connect_ex(place)  # type: ignore[arg-type]
    except OSError:
        return False
    if number == errno.EINPROGRESS:
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        ready = poll.poll(_ANSWER_SECONDS * 1000)
        number = errno.EINPROGRESS if not ready else errno.ECONNREFUSED if ready[0][1] & _OVER else 0
    if number == 0 and is_to_itself(sock):
        reset(sock)
        return False
    return number == 0
