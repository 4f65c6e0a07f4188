# SPDX-License-Identifier: GPL-2.0-or-later
"""The worker's watch over the connections of an attachment that has no monitor.

The kernel notices a cut link late (`tcp` says why TCP has no time-out). If one of several connections ends, the kernel
does not notice at all: its requests would wait for a week (`base.PATIENT_MS`), because with this backend the kernel
accepts no connection in its place. So if one connection ends, the worker ends all of them.

The worker imports this module, so it imports next to nothing.
"""

from __future__ import annotations

import _socket  # the module socket costs 1 MB
import os

from nbdattach.host import tcp

TYPE_CHECKING = False  # the module typing costs 1 MB
if TYPE_CHECKING:
    from collections.abc import Iterable

_LOOKS = 4  # within --dead-peer
_LEAST, _MOST = 0.25, 10.0


class Lifeline:
    """`numbers` are descriptors of the connections, which stay the caller's; `dead_peer` as --dead-peer has it."""

    def __init__(self, numbers: Iterable[int], dead_peer: float) -> None:
        self._peers = [(_socket.socket(fileno=os.dup(number)), tcp.Silence()) for number in numbers]
        self._dead_peer = dead_peer
        self.pause = max(_LEAST, min(_MOST, dead_peer / _LOOKS))  # seconds from one look to the next

    def why_broken(self) -> str:
        """Why the attachment cannot go on; empty while it can."""
        for sock, silence in self._peers:
            if tcp.ends(sock.fileno()):
                return "one of its connections has ended"
            if sock.family != _socket.AF_UNIX and silence.of(sock) >= self._dead_peer:
                return f"its server has not answered for {self._dead_peer:g} s"
        return ""
