# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a server takes connections again: a bare connect, for a twentieth of what a whole try costs.

The connection that it makes is for the caller to use: a server may serve one client only, or end with its first one.
"""

from __future__ import annotations

import errno
import select
import socket

from nbdattach.connection.stream import is_to_itself, numeric, reset
from nbdattach.immutable import immutable
from nbdattach.protocol.target import Target

# Of the machine of the server: nothing listens there.
_NOBODY = (errno.ECONNREFUSED, errno.ENOENT)


@immutable
class Answer:
    """`reached` is the new connection, for the caller to use or to close; None if the server does not take it.

    `nobody`: its machine says that nothing listens there, so a longer wait would not have helped.
    """

    reached: socket.socket | None
    nobody: bool = False


class Probe:
    """Of the server at that numeric address, or at its Unix socket."""

    def __init__(self, target: Target, address: str | None) -> None:
        self._place: tuple[int, object] | None = None
        if target.socket:
            self._place = socket.AF_UNIX, target.socket
        elif address:
            self._place = numeric(target, address)

    def answer(self, within: float) -> Answer:
        """`within`: seconds for the answer of another machine."""
        if self._place is None:
            return Answer(None)
        family, place = self._place
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        except OSError:
            return Answer(None)
        failed = 0
        try:
            failed = _connected(sock, place, within)
            if not failed:
                if not is_to_itself(sock):
                    return Answer(sock)
                reset(sock)
                failed = errno.ECONNREFUSED  # nothing else listens at that port
        except OSError:
            pass  # it was reset at once
        sock.close()
        return Answer(None, nobody=failed in _NOBODY)


def _connected(sock: socket.socket, place: object, within: float) -> int:
    """0, or the errno of the failure; EINPROGRESS if there is no answer."""
    number = sock.connect_ex(place)  # type: ignore[arg-type]
    if number != errno.EINPROGRESS:
        return number
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if poll.poll(within * 1000) else errno.EINPROGRESS
