# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves the bytes of a relay between the kernel's connection and the TLS connection to the server, both ways.

Decisions that matter:
* No step waits (`pumps` has the loop). If the buffer of a direction is full, we read nothing more into it. So a fast
  sender is held back, and neither direction ever waits for the other.
* An old write must never come to the server after a newer one over the next connection. So if a connection ends without
  NBD_CMD_DISC, we reset it and drop its undelivered data; SO_LINGER does the same if this process is killed.
* If the server is lost, the kernel's connection ends too, but first the kernel gets all answers that have come.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
import ssl
import struct
from collections.abc import Callable

from nbdattach.connection.kernel_socket import Link
from nbdattach.connection.openssl_errors import forget_errors, has_ended
from nbdattach.deadline import Deadline
from nbdattach.host import tcp
from nbdattach.protocol.transmission import REQUEST, ends_with_disconnect
from nbdattach.relay.buffer import Buffer

# TLS gives no larger piece at once (RFC 8446, 5.1).
_RECORD = 1 << 14
# Seconds that a server may take to end the connection after our goodbye.
GOODBYE_SECONDS = 5.0
_BURIAL = 1.0
# Checks of each server within --dead-peer.
_LOOKS = 4
# Steps of one connection, before the others have their turn.
_ROUNDS = 16
_PEEK = 1 << 20
_RESET = struct.pack("ii", 1, 0)  # struct linger
_NO_LINGER = struct.pack("ii", 0, 0)


class Pump:
    """One connection. `kernel` is the other end of the kernel's socket; both are taken over.

    `dead_peer`: the server counts as gone if it has owed TCP an answer for so many seconds.
    """

    def __init__(
        self, kernel: socket.socket, server: ssl.SSLSocket, say: Callable[[str], None], dead_peer: float = math.inf
    ) -> None:
        kernel.setblocking(False)
        server.setblocking(False)
        if server.family != socket.AF_UNIX:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.kernel_number, self.server_number = kernel.fileno(), server.fileno()
        self._kernel, self._server, self._say = kernel, server, say
        self._dead_peer, self._silence = dead_peer, tcp.Silence()
        self._up, self._down = Buffer(), Buffer()  # to the server, to the kernel
        # Whether a read or write is worth a try; if not, the event that TLS waits for before the next.
        self._kernel_has = self._kernel_takes = self._server_has = self._server_takes = True
        self._reading_waits, self._writing_waits = select.POLLIN, select.POLLOUT
        self._tail = b""  # the last bytes that the kernel has sent: whether they were NBD_CMD_DISC
        self._leaving: Deadline | None = None  # the kernel has said goodbye and is gone
        self._all_read = False  # all that the kernel has sent
        self._farewell = False  # we have said goodbye to the server
        self.lost = False  # the server is gone, and its socket closed
        self.over = False

    # -- for the loop ----------------------------------------------------------------------------------------------

    @property
    def kernel_events(self) -> int | None:
        """Events to poll for, besides its end; None for no poll at all."""
        if self.over or self._leaving:
            return None
        events = 0
        if not (self.lost or self._up.full):
            events |= select.POLLIN
        if self._down:
            events |= select.POLLOUT
        return events

    @property
    def server_events(self) -> int | None:
        """None also if we could not handle its end yet, because the kernel has not taken the data before that."""
        if self.over or self.lost:
            return None
        events = 0
        if not self._down.full:
            events |= self._reading_waits
        if self._up or (self._leaving and not self._farewell):
            events |= self._writing_waits
        return events or None

    @property
    def seconds_left(self) -> float | None:
        return self._leaving.remaining() if self._leaving else None

    def kernel_is_ready(self, events: int) -> None:
        if events & select.POLLIN:
            self._kernel_has = True
        if events & select.POLLOUT:
            self._kernel_takes = True
        if events & (select.POLLHUP | select.POLLERR | select.POLLNVAL) and not self._leaving:
            self._kernel_is_gone()

    def server_is_ready(self) -> None:
        self._server_has = self._server_takes = True

    @property
    def look_again(self) -> float:
        """Seconds until the next `look`; infinite if there is nothing to check."""
        if self.over or self.lost or self._server.family == socket.AF_UNIX:
            return math.inf
        return self._dead_peer / _LOOKS

    def look(self) -> None:
        """Checks whether the server still answers; needed again and again (`tcp` says why TCP does not end it)."""
        if math.isinf(self.look_again):
            return
        if self._silence.of(self._server) >= self._dead_peer:
            self._server_is_lost(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def step(self) -> bool:
        """Moves all bytes that can be moved without waiting. True if there may be more of them."""
        if self._leaving and self._leaving.passed:
            self.abort()
        for _ in range(_ROUNDS):
            moved = [move() for move in (self._from_kernel, self._to_server, self._from_server, self._to_kernel)]
            if self.over or not any(moved):
                return False
        return True

    def abort(self) -> None:
        """Ends the connection: no more bytes of it reach either side."""
        if self.over:
            return
        if not self.lost:
            if self._server.family == socket.AF_UNIX:
                # It cannot be reset. Its peer reads the bytes on their way before this returns, or the time is up.
                buried = Link(socket.socket(fileno=self._server.detach()))
                buried.bury(Deadline(_BURIAL))
                buried.close()
            else:
                self._server.close()
        self._close()

    # -- the moves: each says whether it moved something ------------------------------------------------------------

    def _from_kernel(self) -> bool:
        if not self._kernel_has or self._up.full or self.lost or self.over or self._all_read:
            return False
        room = self._up.room
        try:
            count = self._kernel.recv_into(room)
        except BlockingIOError:
            self._kernel_has = False
            return False
        except OSError:
            count = 0
        if not count:
            if not self._leaving:
                self._kernel_is_gone()
            self._all_read = True
            return self._leaving is not None
        self._kernel_has = count == len(room) or self._leaving is not None
        self._tail = (self._tail + bytes(room[:count][-REQUEST.size :]))[-REQUEST.size :]
        self._up.grow(count)
        return True

    def _to_server(self) -> bool:
        if not self._server_takes or self.lost or self.over or self._farewell:
            return False
        if not self._up:
            return self._leaving is not None and self._all_read and self._say_goodbye()
        try:
            self._up.shrink(self._server.send(self._up.waiting))
        except ssl.SSLWantWriteError:
            self._server_takes, self._writing_waits = False, select.POLLOUT
            return False
        except ssl.SSLWantReadError:
            self._server_takes, self._writing_waits = False, select.POLLIN
            return False
        except OSError as error:
            self._server_is_lost(error)
        return True

    def _from_server(self) -> bool:
        """Takes the records that are there, so that one send passes them on."""
        moved = False
        for _ in range(_ROUNDS):
            if not self._server_has or self._down.full or self.lost or self.over or not self._take_record():
                break
            moved = True
        return moved

    def _take_record(self) -> bool:
        room = self._down.room
        try:
            count = self._server.recv_into(room)
        except ssl.SSLWantWriteError:
            self._server_has, self._reading_waits = False, select.POLLOUT
            return False
        except (ssl.SSLWantReadError, BlockingIOError):
            self._server_has, self._reading_waits = False, select.POLLIN
            return False
        except OSError as error:
            self._server_is_lost(error)
            return True
        if not count:
            self._server_is_lost(None)
            return True
        # A short record is mostly the last one. Bytes that poll(2) cannot see must be read before we poll again.
        more = count == len(room) or count >= _RECORD or self._farewell or self._server.pending() > 0
        self._server_has, self._reading_waits = more, select.POLLIN
        if not self._leaving:  # else the kernel no longer listens
            self._down.grow(count)
        return True

    def _to_kernel(self) -> bool:
        if self._leaving or self.over:
            return False
        if not self._down:
            if self.lost:
                self._close()
            return False
        if not self._kernel_takes:
            return False
        try:
            self._down.shrink(self._kernel.send(self._down.waiting))
        except BlockingIOError:
            self._kernel_takes = False
            return False
        except OSError:
            self._kernel_is_gone()
        return True

    # -- ends --------------------------------------------------------------------------------------------------------

    def _kernel_is_gone(self) -> None:
        """After NBD_CMD_DISC all that the kernel has sent goes to the server, then our goodbye; else nothing does."""
        try:
            unread = self._kernel.recv(_PEEK, socket.MSG_PEEK)
        except OSError:
            unread = b""
        if self.lost or not ends_with_disconnect(self._tail + unread):
            self.abort()
            return
        self._leaving = Deadline(GOODBYE_SECONDS)
        self._kernel_has = True
        self._down = Buffer()

    def _say_goodbye(self) -> bool:
        """close_notify, then the end of our side; the server ends its own."""
        try:
            self._server.unwrap()
        except ssl.SSLWantWriteError:
            self._server_takes, self._writing_waits = False, select.POLLOUT
            return False
        except (OSError, ValueError):
            forget_errors()  # it is sent; its answer need not be TLS any more
        self._farewell = self._server_has = True
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_WR)  # from here on it is a plain socket
        return True

    def _server_is_lost(self, error: OSError | None) -> None:
        forget_errors()
        if self._leaving:
            if self._farewell and error is None and self._server.family != socket.AF_UNIX:
                self._server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._server.close()
            self._close()
            return
        self._say(f"connection lost: {_words(error)}")
        self.lost = True
        self._server.close()

    def _close(self) -> None:
        self._server.close()
        with contextlib.suppress(OSError):
            self._kernel.shutdown(socket.SHUT_RDWR)
        self._kernel.close()
        self.over = True


def _words(error: OSError | None) -> str:
    if error is None or has_ended(error):
        return "the server closed it"
    return str(getattr(error, "reason", None) or error.strerror or error)
