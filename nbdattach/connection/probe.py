# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a server takes connections again: a bare connect, for a twentieth of what a whole try costs.

The connection that it makes is for the caller to use: a server may serve one client only, or end with its first one.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Sequence

from nbdattach.connection.stream import is_to_itself, numeric, reset
from nbdattach.deadline import Deadline
from nbdattach.errors import NbdattachError, NoConnection
from nbdattach.immutable import immutable
from nbdattach.protocol.target import Target

# Of the machine of the server: nothing listens there.
_REFUSED = (errno.ECONNREFUSED, errno.ENOENT)


@immutable
class Answer:
    """`reached` is the new connection, for the caller to use or to close; None if the server does not take it.

    `refused`: its machine says that nothing listens there, so a longer wait would not have helped.
    """

    reached: socket.socket | None
    refused: bool = False


@immutable
class Asked:
    """A connect that has begun. `failed` is 0, or its errno: EINPROGRESS if the answer is to be waited for."""

    sock: socket.socket | None
    failed: int

    @property
    def is_open(self) -> bool:
        return self.failed == errno.EINPROGRESS

    def answer(self) -> Answer:
        """As of now. To be called once, since the connection is given away or closed."""
        if self.sock is None:
            return Answer(None)
        failed = self.failed
        try:
            if self.is_open and _has_answered(self.sock):
                failed = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not failed:
                if not is_to_itself(self.sock):
                    return Answer(self.sock)
                reset(self.sock)
                failed = errno.ECONNREFUSED  # nothing else listens at that port
        except OSError:
            pass  # it was reset at once
        self.sock.close()
        return Answer(None, refused=failed in _REFUSED)


def is_refusal(error: NbdattachError) -> bool:
    """Whether a whole try has failed as a probe does that is answered `refused`."""
    cause = error.__cause__
    return isinstance(error, NoConnection) and isinstance(cause, OSError) and cause.errno in _REFUSED


class Probe:
    """Of the server at that numeric address, or at its Unix socket."""

    def __init__(self, target: Target, address: str | None) -> None:
        self._place: tuple[int, object] | None = None
        if target.socket:
            self._place = socket.AF_UNIX, target.socket
        elif address:
            self._place = numeric(target, address)

    def begin(self) -> Asked:
        if self._place is None:
            return Asked(None, errno.EINVAL)
        family, place = self._place
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        except OSError as error:
            return Asked(None, error.errno or errno.EMFILE)
        try:
            return Asked(sock, sock.connect_ex(place))  # type: ignore[arg-type]
        except OSError as error:  # such as a path that is too long
            return Asked(sock, error.errno or errno.EINVAL)

    def answer(self, within: float) -> Answer:
        """`within`: seconds for the answer of another machine."""
        asked = self.begin()
        await_answers([asked], within)
        return asked.answer()


def await_answers(asked: Sequence[Asked], within: float) -> None:
    """Returns when all have answered, after `within` seconds at the latest."""
    left, poll, waiting = Deadline(within), select.poll(), set[int]()
    for one in asked:
        if one.sock and one.is_open:
            poll.register(one.sock, select.POLLOUT)
            waiting.add(one.sock.fileno())
    while waiting and not left.passed:
        for number, _ in poll.poll(left.remaining() * 1000):
            poll.unregister(number)
            waiting.remove(number)


def _has_answered(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))
