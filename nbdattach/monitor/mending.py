# SPDX-License-Identifier: GPL-2.0-or-later
"""Replaces dead and silent connections of one device, until all are well; `outage` decides when and how.

mend        while a connection is dead or silent:
                dial; if the server answers, cut the silent ones and give the new connection to the driver
                if it does not, perhaps cut them all the same, so that requests wait in the driver
                if --on-loss has passed, requests fail
                pause
recovered   the driver has all its connections
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable
from functools import partial
from typing import Protocol

from nbdattach.attached import history, state
from nbdattach.clock import boot_time, now
from nbdattach.connection.client import Connection
from nbdattach.deadline import Deadline
from nbdattach.errors import NbdattachError, NoConnection
from nbdattach.kernel import settings, uevents, unhurried
from nbdattach.monitor.access import Access
from nbdattach.monitor.connecting import Connecting
from nbdattach.monitor.events import CHANGED, FAILING, LOST, RECONNECTED, REFUSED, UNREACHABLE, Log
from nbdattach.monitor.links import NOTICED, Gone
from nbdattach.monitor.outage import FRUITLESS, Outage, Terms


class Interruptible(Protocol):
    """Other work comes first: orders, and commands that hold the device."""

    def pause(
        self,
        seconds: float,
        until: Callable[[], bool] | None = None,
        every: float = math.inf,
        ended: Callable[[], bool] = lambda: False,
    ) -> bool:
        """False as soon as there is other work; `mend` is then called again after it.

        True after the time, or when `until` is true, which is asked after `every` seconds each, and at the end; or when
        `ended` is, which is asked after `wake`.
        """

    def wake(self) -> None: ...

    def has_other_work(self) -> bool: ...


class Mending:
    """For one thread."""

    def __init__(
        self,
        connecting: Connecting,
        access: Access,
        thread: Interruptible,
        log: Log,
    ) -> None:
        self._device = connecting.device
        self._recorded = connecting.recorded
        self._links = connecting.links
        self._connecting = connecting
        self._access = access
        self._thread = thread
        self._log = log
        record = self._recorded.record
        self._terms = Terms(record.on_loss, record.dead_peer, record.connect_timeout)
        self._history = history.load(self._device, record)
        self._outage: Outage | None = None
        self._last_outage: Outage | None = None
        self._settled = False
        self._seen_dead = False  # a connection, since we asked the driver about all of them
        self._told: set[str] = set()

    def mend(self) -> None:
        """Works until no connection is dead or silent, or until there is an order to obey first."""
        self._connecting.get_ready()
        without_pause = self._recorded.record.connections  # a server may accept each connection and end it at once
        while outage := self._trouble_now():
            without_pause -= 1
            if (outage.resumed or without_pause < 0) and not self._go_on(outage):
                return
            while not self._try_once(outage):
                if not self._go_on(outage):
                    return
        self._recovered()

    @property
    def all_is_well(self) -> bool:
        """Whether, as far as we know, the driver has all its connections."""
        return self._settled and self._outage is None

    def settle_anew(self) -> None:
        """All connections were replaced by an order: a later outage is a new one."""
        self._outage = self._last_outage = None
        self._settle()

    def _go_on(self, outage: Outage) -> bool:
        """Whether to try again, after a pause; False when something else comes first."""
        if not self._thread.has_other_work():  # a server may have answered just before that came
            self._fail_when_due(outage)
        return self._pause(outage)

    # -- the outage ------------------------------------------------------------------------------------------------

    def _trouble_now(self) -> Outage | None:
        with self._access.kernel_calls():
            dead = self._seen_dead = self._links.has_dead()
            return self._in_outage(dead) if dead or self._links.silent else None

    def _in_outage(self, dead: bool) -> Outage:
        with self._access.kernel_calls():
            self._connecting.remembering.give_up()
            outage = self._outage = self._outage or self._last_one_again() or self._known_outage()
            self._seen_dead = self._seen_dead or dead
            self._update(outage)
            if dead and not outage.told:
                outage.told = True
                self._note_loss()
                self._log(
                    f"{self._device.name}: connection to {self._recorded.name} lost; {self._consequence(outage)}", LOST
                )
                self._say_trouble(outage)
            return outage

    def _update(self, outage: Outage) -> None:
        """One of several connections may serve all requests; it may be lost or recover while we dial others."""
        self._links.drop_undelivered()
        stuck = self._links.stuck
        if stuck or not self._links.any_lives():
            outage.stuck = outage.stuck or (stuck > 0 and self._links.alive)
            outage.lose(boot_time() - stuck)
            return
        answering = self._links.answering
        outage.keep(answering and not self._links.has_served_nothing(FRUITLESS))
        if answering and outage.failing:
            self._links.be_patient(self._recorded.record.on_loss)
            outage.failing = False

    def _known_outage(self) -> Outage:
        """A new outage, or the recorded one of the monitor before us, which may have been killed during it."""
        known = state.trouble_of(self._device)
        if known is None or known.began is None:
            return Outage(self._terms, boot_time(), known.since if known else now())
        began = min(known.began, boot_time())  # `began` may be ahead: silence counts as a loss only after --dead-peer
        failing = known.state == "lost"
        if failing:
            self._links.are_failing()
        return Outage(self._terms, began, known.since, died=known.began, failing=failing)

    def _last_one_again(self) -> Outage | None:
        """The last outage goes on if a new connection died at once and no request was done since.

        If another connection answers, that one may have served the requests, and the server may end each new one.
        """
        if self._last_outage is None:
            return None
        if self._links.has_served_nothing(FRUITLESS):
            return self._last_outage.again()
        if self._links.answering and self._links.since_hand_over < FRUITLESS:
            return self._last_outage.next(boot_time(), now())
        return None

    # -- one try ---------------------------------------------------------------------------------------------------

    def _try_once(self, outage: Outage) -> bool:
        """One try to replace a dead or silent connection; True if, as far as we know, none is left to replace."""
        while True:
            holds = self._access.holds
            try:
                fresh = self._connecting.dial_quickly(outage)
            except NbdattachError as error:
                self._note_failure(outage, error)
                self._give_up_silent(outage)
                return self._is_well()
            try:
                with self._access.kernel_calls():
                    if self._access.holds == holds:
                        return self._replace_by(fresh, outage)
            except Gone:
                self._connecting.say_goodbye(fresh)
                raise
            self._connecting.say_goodbye(fresh)  # it was idle while a command held us, and the server may have ended it
            if self._thread.has_other_work():
                return False

    def _replace_by(self, fresh: Connection, outage: Outage) -> bool:
        if self._is_well():
            self._connecting.say_goodbye(fresh)
            return True
        self._update(outage)
        if silent := self._links.silent:
            outage.cut_silent()
        for link in silent:
            link.cut()
        self._in_outage(dead=True)
        # If requests have to fail, they do so before the next connection comes, and this one would be idle until then.
        if outage.is_hopeless and not outage.until_failing(boot_time()):
            self._connecting.say_goodbye(fresh)
            return False
        if not self._connecting.hand_over(fresh, Deadline(NOTICED)):
            return False
        outage.gain()
        return True

    def _is_well(self) -> bool:
        """Whether a connection that was silent has recovered by itself, and none is dead.

        If we do not hold all of them, we must not ask the driver soon after it took a scout: it may not have noticed
        the scout's end, and would seem to have them all.
        """
        with self._access.kernel_calls():
            if self._links.silent or (self._seen_dead and not self._links.complete):
                return False
            dead = self._links.has_dead()
            self._seen_dead = self._seen_dead or dead
            return not dead

    def _give_up_silent(self, outage: Outage) -> None:
        """Cuts silent connections, because a new one fails, too: requests now wait in the driver for a good one."""
        with self._access.kernel_calls():
            if self._links.silent and outage.give_up_silent(self._links.silence, boot_time()):
                # All of them: a living one would serve new requests while the silent one still has older ones.
                self._links.cut()
                self._in_outage(dead=True)

    # -- between tries ---------------------------------------------------------------------------------------------

    def _fail_when_due(self, outage: Outage) -> None:
        """If --on-loss has passed, waiting requests fail, and new ones fail at once."""
        with self._access.kernel_calls():
            self._update(outage)
            if outage.until_failing(boot_time()) > 0 or self._is_well():
                return
            self._links.fail_requests()
            outage.failing = True
            self._say_trouble(outage)
        seconds = self._recorded.record.on_loss
        self._log(
            f"{self._device.name}: {self._recorded.name} is away for more than {seconds:g} s; requests fail now",
            FAILING,
        )
        hopeless = outage.is_hopeless
        if hopeless or outage.fruitless:  # if not, the next connection may serve the requests under way
            waited = self._links.await_failure(lambda: not self._thread.has_other_work(), all_of_them=hopeless)
            if waited and hopeless:
                outage.start_counting()

    def _pause(self, outage: Outage) -> bool:
        """Waits before the next try; False when something else comes first."""
        seconds = outage.pause(boot_time(), random.random())  # noqa: S311 - no secret
        if outage.may_say(boot_time()):
            with self._access.kernel_calls():
                self._say_trouble(outage, seconds)
        # A server that has taken a connection, and was of no use, would take that of each probe.
        if self._connecting.fails_beyond or outage.resumed or outage.fruitless:
            went_on = self._thread.pause(seconds)
            if went_on:  # so that we know what fails next, the connection or what follows it
                self._connecting.probe()
            return went_on
        every = outage.between_probes(boot_time())
        # If a command held the device until requests have to fail, they do so now.
        if not self._thread.pause(seconds if every else 0.0, self._connecting.probe, every):
            return False
        if self._connecting.would_fail and not self._may_serve(outage):
            return self._await_server(outage)
        return True

    def _await_server(self, outage: Outage) -> bool:
        """Waits as long as a try would fail as surely as a probe; False when something else comes first."""
        suffice = self._connecting.probes_suffice(outage)
        if suffice and outage.says_next:
            with self._access.kernel_calls():
                self._say_trouble(outage)
        left = min(suffice, outage.until_failing(boot_time()))
        if not left:
            return True
        with self._connecting.asked_for_us(lambda: outage.between_probes(boot_time()), self._thread.wake) as question:
            went_on = self._thread.pause(left, ended=lambda: question.answer is not None)
        if not went_on:  # an order may dial, and the server may have no room but for this connection
            self._connecting.forget_probe()
        return went_on

    def _may_serve(self, outage: Outage) -> bool:
        """Whether the driver may have a connection that is alive, so that not only the server's return is awaited.

        Or had one at the last try: if it has ended in the pause, the outage is to learn that, as --on-loss counts now.
        """
        return outage.lives or self._links.alive or not self._links.complete

    # -- the end of it -----------------------------------------------------------------------------------------------

    def _recovered(self) -> None:
        """The driver has all its connections again: the outage is over."""
        with self._access.kernel_calls():
            outage = self._outage
            if outage is None and self._settled:
                return
            self._settle()
            self._outage, self._last_outage = None, outage
            if outage and outage.told:
                seconds = outage.age(boot_time())
                self._log(
                    f"{self._device.name}: {self._recorded.name} connected again after {seconds:.1f} s", RECONNECTED
                )
            self._tell_differences()
            self._recorded.end_move()

    def _settle(self) -> None:
        self._settled = False  # in case the message to the driver fails
        self._links.settle(self._recorded.record.on_loss)
        self._settled = True
        state.save_trouble(self._device, None)
        if self._history.lost_at is not None:
            self._history = self._history.recover(boot_time())
            history.save(self._device, self._history)
            uevents.send(self._device, uevents.RECONNECTED)

    def _note_loss(self) -> None:
        """An outage that goes on under another monitor, or seemed to be over, is the same one."""
        if self._history.lost_at is None:
            self._history = self._history.lose(boot_time())
            uevents.send(self._device, uevents.LOST)

    # -- words for users -------------------------------------------------------------------------------------------

    def _consequence(self, outage: Outage) -> str:
        on_loss = self._recorded.record.on_loss
        if self._links.answering and not self._links.stuck:
            return "another connection serves"
        if outage.failing or not outage.until_failing(boot_time()) or on_loss == 0:
            return "requests fail"
        return "requests wait for it" if on_loss is None else f"requests wait {on_loss:g} s"

    def _note_failure(self, outage: Outage, error: NbdattachError) -> None:
        self._history = self._history.fail(boot_time())
        if str(error) != outage.error:
            outage.error, outage.said = str(error), -math.inf
            self._log(f"{self._device.name}: {error}", UNREACHABLE if isinstance(error, NoConnection) else REFUSED)

    def _say_trouble(self, outage: Outage, pause: float | None = None) -> None:
        """Reports the outage to `status`; if /run is full, `status` does without."""
        outage.said, outage.says_next = boot_time(), pause is not None
        history.save(self._device, self._history)
        word = "lost" if outage.failing else "reconnecting"
        next_try = None if pause is None else now(pause)
        with contextlib.suppress(OSError):
            state.save_trouble(self._device, state.Trouble(word, outage.since, next_try, outage.error, outage.died))

    def _tell_differences(self) -> None:
        """Logs queue settings that another program changed. To restore them, the kernel would wait for all requests."""
        record = self._recorded.record
        found = partial(settings.differences, self._device, record.flags, record.max_sectors_kb, record.block_size)
        none: list[str] = []
        for line in unhurried.known(f"{self._device.name} settings", found, otherwise=none):
            if line not in self._told:
                self._told.add(line)
                self._log(line, CHANGED)
