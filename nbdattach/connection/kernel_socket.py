# SPDX-License-Identifier: GPL-2.0-or-later
"""A connection that the kernel uses: observes and ends it through our duplicate of the socket."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct

from nbdattach.deadline import Deadline
from nbdattach.host import syscalls, tcp

_TIMEVAL = struct.Struct("ll")
# How long a peer may leave data unacknowledged before we test it with another connection. TCP has retransmitted twice
# by then; a peer that is only slow with the requests acknowledges at once.
SILENT = 1.0
_POLL = 0.005
# A FIN has so long to be acknowledged before the connection is reset.
_FAREWELL = 0.05
# Many times as long as the kernel's work item takes from reading the last byte to its end.
_SCOUT_ENDS = 0.01
_BURIAL = 1.0
_DROP = struct.pack("ii", 1, 0)  # struct linger
# With several connections, TCP ends a silent one this much before the driver resends over another: seconds, or a share.
_SOONER, _SHARE_SOONER = 2.0, 0.25
# asm-generic/socket.h; Python has no name for it. The kernel doubles it, and keeps an int.
_SO_SNDBUFFORCE = 32
_MAX_BUFFER = 2**30 - 1
# The kernel's limit (MAX_TCP_KEEPIDLE in net/tcp.h).
_MAX_KEEPALIVE = 32767
_MAX_INT = 2**31 - 1


class Link:
    """Our duplicate of a socket that the kernel uses. A detach does not close it, and it does not prevent a detach."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._tcp = sock.family != socket.AF_UNIX
        self._silence = tcp.Silence()

    @classmethod
    def of(cls, number: int) -> Link:
        """Takes the descriptor over."""
        return cls(socket.socket(fileno=number))

    @property
    def over(self) -> bool:
        """Whether it is shut down in both directions, by either side, or closed by us."""
        number = self._sock.fileno()
        return number < 0 or tcp.ends(number) != 0

    @property
    def silence(self) -> float:
        """Seconds since the peer last answered data; call this every second. 0.0 for a peer that is only slow."""
        return self._silence.of(self._sock) if self._tcp and not self.over else 0.0

    @property
    def silent(self) -> bool:
        """Whether the link seems cut or the peer's machine gone."""
        return self.silence >= SILENT

    @property
    def round_trip(self) -> float | None:
        """Seconds, as TCP measured it; None for Unix sockets."""
        return tcp.Info(self._sock).round_trip if self._tcp else None

    @property
    def limited(self) -> bool:
        """Whether there is a limit to how long sending may take.

        The driver sets one on each socket that it takes while the device has a timeout (nbd_reconnect_socket).
        """
        return self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.size) != bytes(_TIMEVAL.size)

    def unlimited(self) -> None:
        unlimited(self._sock.fileno())

    def get_ready(self, room: int, resent_after: float) -> None:
        get_ready(self._sock.fileno(), room, resent_after)

    def fileno(self) -> int:
        return self._sock.fileno()

    def cut(self) -> None:
        """Ends the connection in both directions; the driver then counts it as dead."""
        with contextlib.suppress(OSError):  # a connection from an older release does not have it yet
            _drop_at_close(self._sock)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def drop_undelivered(self) -> None:
        """For a connection that has ended: data that TCP still holds is dropped and never reaches the server."""
        if self._tcp and tcp.Info(self._sock).state not in tcp.DELIVERED and not self._reset():
            with contextlib.suppress(OSError):
                give_up_within(self._sock.fileno(), 0)  # takes effect when TCP would retransmit

    def bury(self, deadline: Deadline) -> bool:
        """Returns when no data sent over the connection can still reach the server: no old write may arrive late.

        The server may finish the requests that it has received: until the deadline we wait for it to close its end.
        False if the data is only dropped once the driver closes its socket, too: kernel TLS allows no other reset.
        The caller closes it later.
        """
        self.cut()
        buried = True
        if not self._tcp:
            _await_read(self._sock, deadline)
        else:
            farewell = Deadline(max(_FAREWELL, 3 * (self.round_trip or 0)))
            while (state := tcp.Info(self._sock).state) != tcp.CLOSE:
                if not (farewell if state == tcp.FIN_WAIT1 else deadline).sleep(_POLL) or state == tcp.ESTABLISHED:
                    buried = self._reset()
                    break
        return buried

    def _reset(self) -> bool:
        try:
            syscalls.reset_connection(self._sock.fileno())
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._sock.close()


def _await_read(sock: socket.socket, deadline: Deadline) -> None:
    """Waits until the peer of a Unix socket has read all that was sent, or until the deadline."""
    while syscalls.bytes_unread(sock.fileno()) and deadline.sleep(_POLL):
        pass


def unlimited(number: int) -> None:
    """Removes the socket's send timeout, because a slow server is not a dead one."""
    with socket.socket(fileno=os.dup(number)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bytes(_TIMEVAL.size))


def get_ready(number: int, room: int, resent_after: float) -> None:
    """Prepares the socket for the driver's netlink interface, where a device outlives its connections.

    `resent_after`: seconds after which the driver sends a request again over another connection; 0 if it has no other.
    """
    make_room(number, room)
    drop_at_close(number)
    if resent_after:
        give_up_within(number, resent_after - min(_SOONER, resent_after * _SHARE_SOONER))


def make_room(number: int, size: int) -> None:
    """Lets the socket's buffer take so many bytes at once, so that no send has to wait for its peer.

    If a signal interrupts a send, Linux 6.13 and later give the partly sent request to a work item. If the connection
    then ends, that fails the request with EIO (nbd_send_cmd and nbd_pending_cmd_work in drivers/block/nbd.c). A send
    that does not have to wait is never partial.
    """
    with socket.socket(fileno=os.dup(number)) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, min(size, _MAX_BUFFER))
        except PermissionError:  # without CAP_NET_ADMIN up to net.core.wmem_max
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, min(size, _MAX_BUFFER))


def drop_at_close(number: int) -> None:
    """The last close of the connection, also by the driver, drops undelivered data and resets the connection.

    Otherwise TCP keeps the data for a quarter of an hour. When the link heals, an old write reaches the server after
    newer ones, perhaps of another attachment (SO_LINGER of 0 seconds; __tcp_close in net/ipv4/tcp.c).
    """
    with socket.socket(fileno=os.dup(number)) as sock:
        _drop_at_close(sock)


def give_up_within(number: int, seconds: float) -> None:
    """TCP ends the connection and drops undelivered data if the peer acknowledges nothing for so long.

    If a request is too old, the driver only shuts down its connection (nbd_xmit_timeout) and sends the request again
    over another one. TCP would go on with the first one, and an old write would reach the server after a newer one.
    (TCP_USER_TIMEOUT, tcp(7). It counts from the first retransmission, and also while the peer's window is closed. So
    do not use it on a device's only connection: see `tcp`. It also replaces TCP_KEEPCNT: an idle connection ends if
    it has received nothing for so long and one probe was not answered.)
    """
    with socket.socket(fileno=os.dup(number)) as sock:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _within(seconds * 1000, _MAX_INT))


def _drop_at_close(sock: socket.socket) -> None:
    """Needs no new descriptor, so that a connection can be cut even if none is free."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP)


def can_make_room() -> bool:
    """Whether this process may enlarge the buffers of a connection as it likes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        make_room(ours.fileno(), _MAX_BUFFER)
        return has_room(ours.fileno(), _MAX_BUFFER)


def has_room(number: int, size: int) -> bool:
    """Whether it takes so many bytes at once. The kernel doubles the size that is set, for its own overhead."""
    with socket.socket(fileno=os.dup(number)) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 2 * min(size, _MAX_BUFFER)


def watch_peer(sock: socket.socket, seconds: float) -> None:
    """An idle TCP peer that answers nothing for so long counts as gone (keepalive).

    If data is unacknowledged, TCP gives up only after about a quarter of an hour (net.ipv4.tcp_retries2). The monitor
    notices sooner through `Link.silence`: see `tcp` for the reason.
    """
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _within(seconds / 2, _MAX_KEEPALIVE))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _within(seconds / 6, _MAX_KEEPALIVE))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _within(value: float, limit: int) -> int:
    return max(1, min(int(value), limit))


class Scout:
    """A dummy socket offered to the driver, which accepts it only if one of its connections is dead.

    Nothing can be sent over it, so a request that the driver tries to send is queued again, and none is lost.
    """

    def __init__(self) -> None:
        self._kernels, self._ours = socket.socketpair()
        self._ours.shutdown(socket.SHUT_RD)
        # If the driver does not take the other end, closing it drops this byte unread, and our end gets an error
        # (unix_release_sock in net/unix/af_unix.c). A driver that took it and then gave it up causes no such error.
        self._ours.send(b"?")

    def fileno(self) -> int:
        """The descriptor to hand over to the driver."""
        return self._kernels.fileno()

    def was_taken(self) -> bool:
        """Call this once. On return the driver has seen the socket's end, and counts the connection as dead again."""
        self._kernels.close()
        if tcp.ends(self._ours.fileno()) & select.POLLERR:
            return False
        # When the driver reads the end of this socket, it marks the connection that is in its place by then as dead.
        # So no other connection may be put there before that; the driver reads the byte first, which we can see.
        self._ours.shutdown(socket.SHUT_WR)
        deadline = Deadline(_BURIAL)
        _await_read(self._ours, deadline)
        # Only now if a process that another thread of ours started had a copy of the descriptor, for a moment.
        if tcp.ends(self._ours.fileno()) & select.POLLERR:
            return False
        deadline.sleep(_SCOUT_ENDS)
        return True

    def close(self) -> None:
        self._kernels.close()
        self._ours.close()

    def __enter__(self) -> Scout:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
