# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a TCP peer has been silent, from struct tcp_info (linux/tcp.h; the states are in net/tcp_states.h).

Decision that matters: a peer is silent while it owes an answer and none comes: it does not acknowledge data, or does
not answer a question about its closed window. A peer that acknowledges everything and keeps its window closed is slow,
and may stay so. So TCP_USER_TIMEOUT is not set: since Linux 5.11 it also ends a connection with a window that has been
closed for that long, although the peer answers every probe (tcp_probe_timer in net/ipv4/tcp_timer.c). The exception
is one of several connections: `kernel_socket.give_up_within` tells why.

The worker imports this module, so it imports next to nothing.
"""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False  # the module typing costs 1 MB
if TYPE_CHECKING:
    from typing import Protocol

    class Socket(Protocol):
        def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


IPPROTO_TCP, TCP_INFO = 6, 11
ESTABLISHED, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE = 1, 4, 5, 6, 7
# Nothing that we sent can still reach the peer, or it has all arrived.
DELIVERED = (FIN_WAIT2, TIME_WAIT, CLOSE)
# Eight bytes, then 32-bit numbers, as far as we need them. By their place:
_BYTES, _SIZE = 8, 72
_STATE, _RETRANSMITS_SO_FAR, _PROBES_SO_FAR = 0, 2, 3
_UNACKED, _LAST_DATA_SENT, _LAST_ACK_RECV, _RTT = 4, 9, 12, 15
# How often TCP must have sent data again, or asked about a closed window, before we conclude that no answer came: one
# loss is common, and a peer answers at most one such question in half a second (tcp_invalid_ratelimit).
_RETRANSMITS = _PROBES = 2


class Info:
    """One look at a connection."""

    def __init__(self, sock: Socket) -> None:
        info = sock.getsockopt(IPPROTO_TCP, TCP_INFO, _SIZE)
        numbers = memoryview(info)[_BYTES:].cast("I")  # the module struct costs a worker 40 kB
        self.state, self.retransmits, self.probes = info[_STATE], info[_RETRANSMITS_SO_FAR], info[_PROBES_SO_FAR]
        self.unacked = numbers[_UNACKED]  # segments
        self.since_sent = numbers[_LAST_DATA_SENT] / 1000  # seconds, as all times here
        self.since_ack = numbers[_LAST_ACK_RECV] / 1000
        self.round_trip = numbers[_RTT] / 1e6

    @property
    def insists(self) -> bool:
        """Whether TCP has asked more than once, so that one lost packet is not the reason."""
        return self.retransmits >= _RETRANSMITS or self.probes >= _PROBES


class Silence:
    """How long one peer has owed an answer. Ask it every few seconds, because TCP does not tell when it began."""

    def __init__(self) -> None:
        self._since: float | None = None

    def of(self, sock: Socket) -> float:
        """Seconds, as of now; 0.0 also for a peer that TCP has asked once only."""
        info = Info(sock)
        seconds = self.seconds(info)
        return seconds if info.insists else 0.0

    def seconds(self, info: Info, now: float | None = None) -> float:
        """0.0 for a peer that owes nothing. `now` is a moment on the monotonic clock."""
        now = time.monotonic() if now is None else now
        asked, answered = now - info.since_sent, now - info.since_ack
        if info.probes:
            asked = now  # TCP does not tell when; this is late by no more than the time between two looks
        elif not info.unacked or asked <= answered:
            self._since = None
            return 0.0
        if self._since is None or answered > self._since:
            self._since = asked
        return now - self._since


def ends(number: int) -> int:
    """POLLHUP and POLLERR of a TCP or Unix socket, which poll(2) always reports; 0 if the connection lives."""
    poll = select.poll()
    poll.register(number, 0)
    return sum(event for _, event in poll.poll(0))
