# SPDX-License-Identifier: GPL-2.0-or-later
"""A connection that the kernel uses, as our duplicate of its socket shows it; and how to end it for good.

The numbers are those of struct tcp_info and the TCP states in linux/tcp.h and net/tcp_states.h.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct

from nbdattach import ioctl
from nbdattach.deadline import Deadline

# Three of the eight bytes, which begin with the state; then those of the 32-bit numbers that we want, by their place.
_TCP_INFO = struct.Struct("=BBB5x16I")
_TIMEVAL = struct.Struct("ll")
_UNACKED, _LAST_ACK_RECV, _RTT = 4, 12, 15
_ESTABLISHED, _FIN_WAIT1, _CLOSE = 1, 4, 7
# How long a peer may leave data without any sign of life before it is asked by another connection. Two retransmissions
# have gone out by then; a peer that only takes its time over the requests acknowledges at once.
SILENT_MS = 1000
_RETRANSMITS = 2
_POLL = 0.005
# A FIN on its way gets so long to arrive before the connection is reset.
_FAREWELL = 0.05
# What a work item of the kernel needs from reading the last byte to its end, many times over.
_SCOUT_ENDS = 0.01
_BURIAL = 1.0
# What the kernel takes (MAX_TCP_KEEPIDLE in net/tcp.h; the user timeout is an int of milliseconds).
_MAX_KEEPALIVE = 32767
_MAX_INT = 2**31 - 1


class Link:
    """Our duplicate of a socket in the kernel's hands. Not closed by the kernel's detach, nor keeping it attached."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._tcp = sock.family != socket.AF_UNIX

    @classmethod
    def of(cls, number: int) -> Link:
        """Takes the descriptor over."""
        return cls(socket.socket(fileno=number))

    @property
    def over(self) -> bool:
        """Shut down in both directions, by whichever side."""
        return _ends(self._sock) != 0

    @property
    def silent(self) -> bool:
        """Data is under way and nothing at all comes back: the link is cut, or the peer's machine gone."""
        if not self._tcp or self.over:
            return False
        _, _, retransmits, *rest = self._info()
        return retransmits >= _RETRANSMITS and rest[_UNACKED] > 0 and rest[_LAST_ACK_RECV] >= SILENT_MS

    @property
    def round_trip(self) -> float | None:
        """Seconds, as TCP measured it; None for Unix sockets."""
        return self._info()[3 + _RTT] / 1e6 if self._tcp else None

    @property
    def limited(self) -> bool:
        """Whether there is a limit to how long sending may take.

        The driver sets one on each socket that it takes while the device has a timeout (nbd_reconnect_socket).
        """
        return self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.size) != bytes(_TIMEVAL.size)

    def unlimited(self) -> None:
        unlimited(self._sock.fileno())

    def fileno(self) -> int:
        return self._sock.fileno()

    def cut(self) -> None:
        """Ends the connection in both directions; the driver then counts it as dead."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def bury(self, deadline: Deadline) -> None:
        """Returns when nothing that was sent over it can still come to the server: no old write may arrive late.

        What the server has received already it shall finish: until the deadline it may say so by closing its end.
        """
        self.cut()
        if not self._tcp:
            _await_read(self._sock, deadline)
        else:
            farewell = Deadline(max(_FAREWELL, 3 * (self.round_trip or 0)))
            while (state := self._info()[0]) != _CLOSE:
                if not (farewell if state == _FIN_WAIT1 else deadline).sleep(_POLL) or state == _ESTABLISHED:
                    with contextlib.suppress(OSError):
                        ioctl.reset_connection(self._sock.fileno())
                    break
        self.close()

    def _info(self) -> tuple[int, ...]:
        return _TCP_INFO.unpack(self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))

    def close(self) -> None:
        self._sock.close()


def _ends(sock: socket.socket) -> int:
    """POLLHUP and POLLERR, which come unasked; 0 for a connection that lives."""
    poll = select.poll()
    poll.register(sock.fileno(), 0)
    return sum(event for _, event in poll.poll(0))


def _await_read(sock: socket.socket, deadline: Deadline) -> None:
    """Until the peer of a Unix socket has taken all that was sent, or the deadline."""
    while ioctl.bytes_unread(sock.fileno()) and deadline.sleep(_POLL):
        pass


def unlimited(number: int) -> None:
    """Sending over the socket may take as long as it takes: a slow server is not a dead one."""
    with socket.socket(fileno=os.dup(number)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bytes(_TIMEVAL.size))


def watch_peer(sock: socket.socket, seconds: float) -> None:
    """A TCP peer that is silent for so long counts as gone: keepalive while idle, the user timeout (RFC 5482) else.

    A server that is merely slow acknowledges what it gets, so it is never gone by this.
    """
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _within(seconds / 2, _MAX_KEEPALIVE))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _within(seconds / 6, _MAX_KEEPALIVE))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _within(seconds * 1000, _MAX_INT))


def _within(value: float, limit: int) -> int:
    return max(1, min(int(value), limit))


class Scout:
    """A connection that leads nowhere, to find out whether the driver would take one: it does where one is dead.

    Nothing can be sent over it, so requests that are waiting come back to wait, and none is lost in it.
    """

    def __init__(self) -> None:
        self._kernels, self._ours = socket.socketpair()
        self._ours.shutdown(socket.SHUT_RD)
        # Whoever drops the other end drops this byte unread, and that is an error at ours (unix_release_sock in
        # net/unix/af_unix.c); a driver that took it, and found out that it is no good, is none.
        self._ours.send(b"?")

    def fileno(self) -> int:
        """To be handed over."""
        return self._kernels.fileno()

    def was_taken(self) -> bool:
        """To be asked once. On return the driver has seen the end of it, and counts the connection as dead again."""
        self._kernels.close()
        if _ends(self._ours) & select.POLLERR:
            return False
        # The driver marks whatever connection is in that place as dead when it finds the end of this one. So nothing
        # else may be put there before: it reads the byte first.
        self._ours.shutdown(socket.SHUT_WR)
        deadline = Deadline(_BURIAL)
        _await_read(self._ours, deadline)
        deadline.sleep(_SCOUT_ENDS)
        return True

    def close(self) -> None:
        self._kernels.close()
        self._ours.close()

    def __enter__(self) -> Scout:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
