# SPDX-License-Identifier: GPL-2.0-or-later
"""A connection that the kernel uses, as our duplicate of its socket shows it; and how to end it for good."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct

from nbdattach.deadline import Deadline
from nbdattach.host import syscalls, tcp

_TIMEVAL = struct.Struct("ll")
# How long a peer may leave data without any sign of life before it is asked by another connection. Two retransmissions
# have gone out by then; a peer that only takes its time over the requests acknowledges at once.
SILENT = 1.0
_POLL = 0.005
# A FIN on its way gets so long to arrive before the connection is reset.
_FAREWELL = 0.05
# What a work item of the kernel needs from reading the last byte to its end, many times over.
_SCOUT_ENDS = 0.01
_BURIAL = 1.0
_DROP = struct.pack("ii", 1, 0)  # struct linger
# With several connections TCP ends one so much sooner than the driver would use another one: seconds, or a share.
_SOONER, _SHARE_SOONER = 2.0, 0.25
# asm-generic/socket.h; Python has no name for it. The kernel doubles it, and keeps an int.
_SO_SNDBUFFORCE = 32
_MAX_BUFFER = 2**30 - 1
# What the kernel takes (MAX_TCP_KEEPIDLE in net/tcp.h).
_MAX_KEEPALIVE = 32767
_MAX_INT = 2**31 - 1


class Link:
    """Our duplicate of a socket in the kernel's hands. Not closed by the kernel's detach, nor keeping it attached."""

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
        """Shut down in both directions, by whichever side; or closed by us."""
        number = self._sock.fileno()
        return number < 0 or tcp.ends(number) != 0

    @property
    def silence(self) -> float:
        """Seconds for which the peer has owed an answer; to be asked every second. 0.0 for one that only is slow."""
        return self._silence.of(self._sock) if self._tcp and not self.over else 0.0

    @property
    def silent(self) -> bool:
        """The link is cut, or the peer's machine gone, as far as anybody can tell from here."""
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
        with contextlib.suppress(OSError):  # an older release has not done that
            _drop_at_close(self._sock)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def drop_undelivered(self) -> None:
        """Of a connection that has ended: what it still has to send is not to come to the server any more."""
        if self._tcp and tcp.Info(self._sock).state == tcp.FIN_WAIT1 and not self._reset():
            with contextlib.suppress(OSError):
                give_up_within(self._sock.fileno(), 0)  # when TCP would send it the next time

    def bury(self, deadline: Deadline) -> bool:
        """Returns when nothing that was sent over it can still come to the server: no old write may arrive late.

        What the server has received already it shall finish: until the deadline it may say so by closing its end.
        False where that is only so once the driver closes it, too: TLS in the kernel knows no other reset.
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
        self.close()
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
    """Until the peer of a Unix socket has taken all that was sent, or the deadline."""
    while syscalls.bytes_unread(sock.fileno()) and deadline.sleep(_POLL):
        pass


def unlimited(number: int) -> None:
    """Sending over the socket may take as long as it takes: a slow server is not a dead one."""
    with socket.socket(fileno=os.dup(number)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bytes(_TIMEVAL.size))


def get_ready(number: int, room: int, resent_after: float) -> None:
    """For the driver by netlink, which keeps a device over many connections.

    `resent_after`: seconds after which it sends a request again over another connection that it has; 0 where it has
    no other one.
    """
    make_room(number, room)
    drop_at_close(number)
    if resent_after:
        give_up_within(number, resent_after - min(_SOONER, resent_after * _SHARE_SOONER))


def make_room(number: int, size: int) -> None:
    """Lets the socket's buffer take so many bytes at once, so that no send has to wait for its peer.

    Since Linux 6.13 the driver gives a request that it has sent in part, when a signal came, to a work item. That fails
    it with EIO if the connection then ends (nbd_send_cmd and nbd_pending_cmd_work in drivers/block/nbd.c). A send that
    needs not wait is never one in part.
    """
    with socket.socket(fileno=os.dup(number)) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, min(size, _MAX_BUFFER))
        except PermissionError:  # without CAP_NET_ADMIN up to net.core.wmem_max
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, min(size, _MAX_BUFFER))


def drop_at_close(number: int) -> None:
    """Whoever closes the connection last, be it the driver, drops what it has not delivered, and resets it.

    Else TCP keeps that for a quarter of an hour, and an old write comes to the server when the link heals, after newer
    ones, perhaps of another attachment (SO_LINGER of 0 seconds; __tcp_close in net/ipv4/tcp.c).
    """
    with socket.socket(fileno=os.dup(number)) as sock:
        _drop_at_close(sock)


def give_up_within(number: int, seconds: float) -> None:
    """TCP ends the connection, and drops what it has not delivered, when the peer acknowledges nothing for so long.

    The driver only shuts down a connection whose request is too old (nbd_xmit_timeout), and sends the request again
    over another one. TCP would go on with the first one, and an old write would come to the server after a newer one.
    (TCP_USER_TIMEOUT, tcp(7). It counts from the first retransmission, and also while the peer's window is closed, so
    it is nothing for a connection that has no other one beside it: see `tcp`. It also takes the place of TCP_KEEPCNT:
    an idle connection ends when it has heard nothing for so long and one probe was not answered.)
    """
    with socket.socket(fileno=os.dup(number)) as sock:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _within(seconds * 1000, _MAX_INT))


def _drop_at_close(sock: socket.socket) -> None:
    """Takes no descriptor, so that a connection can be cut where there is no free one."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP)


def can_make_room() -> bool:
    """Whether this process may enlarge the buffers of a connection as it likes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        make_room(ours.fileno(), _MAX_BUFFER)
        return has_room(ours.fileno(), _MAX_BUFFER)


def has_room(number: int, size: int) -> bool:
    """Whether it takes so many bytes at once. The kernel doubles what it is told, for what it needs around the data."""
    with socket.socket(fileno=os.dup(number)) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 2 * min(size, _MAX_BUFFER)


def watch_peer(sock: socket.socket, seconds: float) -> None:
    """An idle TCP peer that answers nothing for so long counts as gone (keepalive).

    TCP says the same of one that owes an answer only after a quarter of an hour or so (net.ipv4.tcp_retries2). Sooner
    is for whoever looks at `Link.silence`: see `tcp` for the reason.
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
        if tcp.ends(self._ours.fileno()) & select.POLLERR:
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
