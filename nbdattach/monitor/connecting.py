# SPDX-License-Identifier: GPL-2.0-or-later
"""New connections for one device: dials them, and gives them to the driver in place of dead ones."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from nbdattach.attached import same_export
from nbdattach.attached.state import Record
from nbdattach.clock import boot_time
from nbdattach.connection.client import Connection
from nbdattach.connection.kernel_socket import Link
from nbdattach.connection.probe import Answer, Probe, is_refusal
from nbdattach.connection.stream import address_of, remember
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import NbdattachError, Refused
from nbdattach.host.procfs import started
from nbdattach.monitor.asking import FOR_ALL, Question
from nbdattach.monitor.events import MOVED, Log
from nbdattach.monitor.links import Gone, Links
from nbdattach.monitor.outage import Outage
from nbdattach.monitor.places import Place, in_use, ordered, places, probes_suffice
from nbdattach.monitor.recorded import Recorded
from nbdattach.monitor.remembering import Remembering
from nbdattach.own_server.kept import require_same_file
from nbdattach.own_server.words import revived
from nbdattach.protocol import transmission
from nbdattach.protocol.target import Target
from nbdattach.relay.dialer import Carrier, Relay
from nbdattach.reporter import silent

if TYPE_CHECKING:
    from socket import socket

_UNKNOWN_ROUND_TRIP = 0.4
# Seconds that a probe waits for the answer of another machine. Orders of commands wait, too.
_LEAST_ANSWER, _MOST_ANSWER = 0.1, 0.5
_ROUND_TRIPS = 2
# Time for the peer to read the data already sent to it, before we reset a connection.
_BURIAL = 2.0


class Connecting:
    """For one caller at a time."""

    def __init__(
        self,
        device: Device,
        recorded: Recorded,
        links: Links,
        remembering: Remembering,
        relay: Relay | None,
        log: Log,
    ) -> None:
        self.device = device
        self.log = log
        self.remembering = remembering
        self.recorded = recorded
        self.links = links
        record = recorded.record
        transport = record.tls and record.tls.transport
        wanted = "relay" if transport == "relay" else record.tls_transport
        self._carrier = Carrier(wanted, relay, was_in_kernel=transport == "kernel")
        self._made: tuple[Connection, Place] | None = None  # the last one, and where
        self._prepared = False  # whether we can dial without reading a disk
        self._usual: tuple[Record, Place, Probe] | None = None  # of the server that this record has in use
        self._reached: socket | None = None  # the connection of a probe, for the next dial
        self.fails_beyond = False  # whether the last dial failed though the server had taken the connection
        self._was_refused = False  # whether the last dial failed since nothing listened there
        self.would_fail = False  # whether a dial there would fail as the last one did: so the last probe says
        if record.address:
            remember(record.current_target(), record.address)
        self._round_trip = links.round_trip or _UNKNOWN_ROUND_TRIP

    def get_ready(self) -> None:
        """Reads all that dialling needs, because the disk may be the very device that is lost."""
        if not self._prepared:
            self._prepared = True
            self._carrier.get_ready(self.recorded.target)

    def close(self) -> None:
        self._carrier.close()
        self.forget_probe()

    def forget_probe(self) -> None:
        """Closes the connection that the last probe has made, if it is not used."""
        if self._reached:
            self._reached.close()
            self._reached = None

    # -- dialling --------------------------------------------------------------------------------------------------

    def probe(self) -> bool:
        """Whether the server in use takes connections. The next `dial_quickly` uses the one that this makes."""
        self.forget_probe()
        self.would_fail = False
        place, usual = self._usual_place()
        if not self._carrier.uses_relay(place.target):  # it connects by itself
            self._take(usual.answer(min(_MOST_ANSWER, max(_LEAST_ANSWER, _ROUND_TRIPS * self._round_trip))))
        return self._reached is not None

    def _usual_place(self) -> tuple[Place, Probe]:
        """To read an address takes longer than a probe, so this is made once for each record.

        But the network interface that is named in one may come later, or be another by now.
        """
        record = self.recorded.record
        if self._usual is None or self._usual[0] is not record or "%" in (record.address or ""):
            place = in_use(record)
            self._usual = record, place, Probe(place.target, place.address)
        return self._usual[1:]

    def _take(self, answer: Answer) -> None:
        self._reached, self.would_fail = answer.reached, answer.refused and self._was_refused

    @contextlib.contextmanager
    def asked_for_us(self, pause: Callable[[], float], wake: Callable[[], None]) -> Iterator[Question]:
        """While a probe says that nothing listens, probes are made for us; as `probe` at the end."""
        question = Question(self._usual_place()[1], pause, wake)
        try:
            with FOR_ALL.about(question):
                yield question
        finally:
            if question.answer:
                self._take(question.answer)

    def probes_suffice(self, outage: Outage) -> float:
        """For how many seconds no try is needed while probes say that one would fail."""
        return probes_suffice(self.recorded.record, outage.gone(boot_time()))

    def dial_quickly(self, outage: Outage) -> Connection:
        """Dials with short limits, because a device waits for it. Raises `NbdattachError`: the most telling one."""
        ready, self._reached = self._reached, None
        self.fails_beyond, self._was_refused = ready is not None, False
        moment = boot_time()
        connect_within = outage.connect_within(self._round_trip, moment)
        failures: list[NbdattachError] = []
        for place in places(self.recorded.record, outage.gone(moment)):
            try:
                made = self._dialled(place, outage.dial_within(moment), connect_within, ready=ready)
                self.fails_beyond = False
                return made
            except NbdattachError as error:
                if not failures:  # the server in use, as a probe
                    self._was_refused = is_refusal(error)
                failures.append(self._worded(error, place))
            ready = None
        raise next((one for one in failures if isinstance(one, Refused)), failures[0])

    def dial(
        self, target: Target | None, size: int | None = None, any_size: bool = False, any_content: bool = False
    ) -> Connection:
        """A connection to the attached export, which may have another size with `any_size`. Raises `NbdattachError`.

        With `any_content` the user says that it is the right disk. None is the server in use, at its
        address.
        """
        place = in_use(self.recorded.record) if target is None else ordered(target)
        return self._dialled_at_leisure(place, size, any_size, any_content)

    def dial_all(self, target: Target | None, size: int, any_content: bool = False) -> list[Connection]:
        """As many as the device has, all to the same address. Raises `NbdattachError`; then none is left open."""
        made = [self.dial(target, size=size, any_content=any_content)]
        place = replace(self._made[1], address=address_of(made[0].stream.sock)) if self._made else None
        try:
            while place and len(made) < self.recorded.record.connections:
                made.append(self._dialled_at_leisure(place, size, any_content=any_content))
        except NbdattachError:
            self.say_goodbye(*made)
            raise
        return made

    def _dialled_at_leisure(
        self, place: Place, size: int | None, any_size: bool = False, any_content: bool = False
    ) -> Connection:
        began = time.monotonic()
        patience = self.recorded.record.connect_timeout
        try:
            made = self._dialled(place, patience, math.inf, size, any_size, any_content)
        except NbdattachError as error:
            raise self._worded(error, place) from None
        self._round_trip = max(self._round_trip, time.monotonic() - began)
        return made

    def _worded(self, error: NbdattachError, place: Place) -> NbdattachError:
        """As users know the server; one of our own is started again if it is dead."""
        server = self.recorded.record.server
        return revived(server, error, place.target.uri) if server and not place.elsewhere else error

    def _dialled(
        self,
        place: Place,
        within: float,
        connect_within: float,
        size: int | None = None,
        any_size: bool = False,
        any_content: bool = False,
        ready: socket | None = None,
    ) -> Connection:
        record, target = self.recorded.record, place.target
        try:
            made = self._carrier.dial(
                place.dialled,
                record.dead_peer,
                within,
                silent,
                connect_within=connect_within,
                raw_size=record.size if record.raw else None,
                ready=ready,
            )
        except NbdattachError as error:
            if error.thing == place.dialled.uri:
                error.thing, error.args = target.uri, (f"{target.uri}: {error.cause}",)  # as users know it
            raise
        # While its size is being changed, the export may have the old or the new size.
        any_size = any_size or (size is None and made.export.size == record.new_size)
        try:
            differs = same_export.difference(record, made.export, made.export.size if any_size else size)
            if differs:
                hint = f"let the server offer it as before, or attach it anew: nbdattach disconnect {self.device.path}"
                if not same_export.difference(record, made.export, made.export.size):
                    hint = f"nbdattach resize {self.device.path} accepts the new size"
                raise Refused(target.uri, differs, hint)
            if record.server and not place.elsewhere:
                require_same_file(record.server)
            if not any_content:
                self.remembering.require_same(made, place)
        except NbdattachError:
            self.say_goodbye(made)
            raise
        made.stream.sock.settimeout(None)
        self._made = (made, place)
        return made

    # -- giving --------------------------------------------------------------------------------------------------

    def hand_over(self, fresh: Connection, noticed: Deadline) -> bool:
        """Buries dead connections, then gives the driver this one in place of a dead one; whether it took it.

        Raises `Gone` if the device has another attachment by now, which may be of the same process.
        """
        if not self.recorded.is_still_there:
            self.say_goodbye(fresh)
            raise Gone
        self._note_place(fresh)
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

    def _note_place(self, fresh: Connection) -> None:
        """Records the server that the device is about to move to. Raises OSError; then nothing has moved."""
        made, place = self._made or (None, None)
        record = self.recorded.record
        if made is not fresh or place is None or record.moving_to or not place.elsewhere:
            return
        address = place.address or address_of(fresh.stream.sock)
        using = "" if place.target.uri == record.target else place.target.uri
        if (using, address) == (record.using, record.address):
            return
        before = in_use(record)
        gone = before.name if place.target.uri == record.uri else record.uri
        left = [one for one in record.left if one not in (place.target.uri, place.name, gone)]
        try:
            self.remembering.move()
            self.recorded.begin(using=using, address=address, left=(*left, gone))
        except (OSError, Gone):
            self.say_goodbye(fresh)
            raise
        self.log(f"{self.device.name}: going on at {place.target.uri}" + (f" ({address})" if address else ""), MOVED)

    def say_goodbye(self, *connections: Connection) -> None:
        """Ends connections that the driver does not use (NBD_CMD_DISC)."""
        for connection in connections:
            with contextlib.suppress(NbdattachError):
                connection.stream.run(transmission.disconnect())
            connection.stream.close()
