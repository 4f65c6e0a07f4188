# SPDX-License-Identifier: GPL-2.0-or-later
"""New connections for one device: dials them, and gives them to the driver in place of dead ones."""

from __future__ import annotations

import contextlib
import math
import time

from nbdattach.attached import same_export
from nbdattach.clock import boot_time
from nbdattach.connection.client import Connection
from nbdattach.connection.kernel_socket import Link
from nbdattach.connection.stream import remember
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import NbdattachError, Refused
from nbdattach.host.procfs import started
from nbdattach.monitor.links import Links
from nbdattach.monitor.outage import Outage
from nbdattach.monitor.recorded import Recorded
from nbdattach.monitor.remembering import Remembering
from nbdattach.protocol import transmission
from nbdattach.protocol.target import Target
from nbdattach.relay.dialer import Carrier, Relay
from nbdattach.reporter import silent

_UNKNOWN_ROUND_TRIP = 0.4
# Time for the peer to read the data already sent to it, before we reset a connection.
_BURIAL = 2.0


class Connecting:
    """For one caller at a time."""

    def __init__(
        self, device: Device, recorded: Recorded, links: Links, remembering: Remembering, relay: Relay | None
    ) -> None:
        self.device = device
        self.remembering = remembering
        self.recorded = recorded
        self.links = links
        record = recorded.record
        transport = record.tls and record.tls.transport
        wanted = "relay" if transport == "relay" else record.tls_transport
        self._carrier = Carrier(wanted, relay, was_in_kernel=transport == "kernel")
        self._ready = False  # whether we can dial without reading a disk
        if record.address:
            remember(record.current_target(), record.address)
        self._round_trip = links.round_trip or _UNKNOWN_ROUND_TRIP

    def get_ready(self) -> None:
        """Reads all that dialling needs, because the disk may be the very device that is lost."""
        if not self._ready:
            self._ready = True
            self._carrier.get_ready(self.recorded.target)

    def close(self) -> None:
        self._carrier.close()

    # -- dialling --------------------------------------------------------------------------------------------------

    def dial_quickly(self, outage: Outage) -> Connection:
        """Dials with short limits, because a device waits for it. Raises `NbdattachError`."""
        moment = boot_time()
        connect_within = outage.connect_within(self._round_trip, moment)
        return self._dialled(self.recorded.target, outage.dial_within(moment), connect_within)

    def dial(self, target: Target, size: int | None = None, any_size: bool = False) -> Connection:
        """A connection to the attached export, which may have another size with `any_size`. Raises `NbdattachError`."""
        began = time.monotonic()
        made = self._dialled(target, self.recorded.record.connect_timeout, math.inf, size, any_size)
        self._round_trip = max(self._round_trip, time.monotonic() - began)
        return made

    def dial_all(self, target: Target, size: int) -> list[Connection]:
        """As many as the device has. Raises `NbdattachError`; then none is left open."""
        made: list[Connection] = []
        try:
            for _ in range(self.recorded.record.connections):
                made.append(self.dial(target, size=size))
        except NbdattachError:
            self.say_goodbye(*made)
            raise
        return made

    def _dialled(
        self, target: Target, within: float, connect_within: float, size: int | None = None, any_size: bool = False
    ) -> Connection:
        record = self.recorded.record
        made = self._carrier.dial(
            target,
            record.dead_peer,
            within,
            silent,
            connect_within=connect_within,
            raw_size=record.size if record.raw else None,
        )
        # While its size is being changed, the export may have the old or the new size.
        any_size = any_size or (size is None and made.export.size == record.new_size)
        differs = same_export.difference(record, made.export, made.export.size if any_size else size)
        if differs:
            self.say_goodbye(made)
            hint = f"nbdattach resize {self.device.path} accepts a new size; nothing else may differ"
            raise Refused(target.uri, differs, hint)
        try:
            self.remembering.require_same(made)
        except NbdattachError:
            self.say_goodbye(made)
            raise
        made.stream.sock.settimeout(None)
        return made

    # -- giving --------------------------------------------------------------------------------------------------

    def hand_over(self, fresh: Connection, noticed: Deadline) -> bool:
        """Buries dead connections, then gives the driver this one in place of a dead one; whether it took it."""
        burial = Deadline(_BURIAL)
        self.links.bury_dead(burial)
        self._carrier.bury(burial)
        if not self.links.hand_over(Link(fresh.stream.sock), noticed):
            self.say_goodbye(fresh)
            return False
        relay = fresh.relay.pid if fresh.relay else None
        record = self.recorded.record
        if (fresh.tls, relay) != (record.tls, record.relay):
            self.recorded.note(tls=fresh.tls, relay=relay, relay_started=relay and started(relay))
        return True

    def say_goodbye(self, *connections: Connection) -> None:
        """Ends connections that the driver does not use (NBD_CMD_DISC)."""
        for connection in connections:
            with contextlib.suppress(NbdattachError):
                connection.stream.run(transmission.disconnect())
            connection.stream.close()
