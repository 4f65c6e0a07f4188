# SPDX-License-Identifier: GPL-2.0-or-later
"""Orders to a relay, and its answers: the messages between `dialer` and `process`.

    Dial, with a descriptor, the other end of the kernel's socket
            -> Traced for each step, then Dialled or an error
    Bury    -> Said "buried": connections that ended without NBD_CMD_DISC can no longer write to the server

A monitor may give orders to a relay of another version, so fields stay, and a new one has a default.
"""

from __future__ import annotations

import math
from typing import Any

from nbdattach.immutable import immutable
from nbdattach.protocol.export import Export
from nbdattach.protocol.target import Target
from nbdattach.untrusted_json import made_of


@immutable
class Dial:
    """Times in seconds, as in `connection.client.connect`; `dead_peer` as in --dead-peer."""

    target: Target
    timeout: float
    dead_peer: float
    connect_within: float = math.inf
    raw_size: int | None = None
    do: str = "dial"

    @classmethod
    def of(cls, order: dict[str, Any]) -> Dial:
        """Raises ValueError, also for an unknown field: the connection may not be what was asked for without it."""
        no_limit = order.get("connect_within") == math.inf  # which is a default here, and no number elsewhere in JSON
        known = {name: value for name, value in order.items() if not (no_limit and name == "connect_within")}
        return made_of(cls, known, strict=True)


@immutable
class Bury:
    do: str = "bury"


@immutable
class Traced:
    """A step of the handshake, for --debug."""

    trace: str


@immutable
class Dialled:
    """`tls` is version and cipher; `pid` the relay's, which has forked since it was started."""

    export: Export
    tls: tuple[str, str] | None
    pid: int


@immutable
class Said:
    said: str
