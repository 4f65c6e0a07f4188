# SPDX-License-Identifier: GPL-2.0-or-later
"""The watch over one attachment: notices a dead connection, dials a new one, and hands it to the kernel.

Three modules: `outage` decides (arithmetic on times and facts), `links` has the driver's side (which connection is dead
and how to replace it), and this module has the thread between them, with the orders of commands.

Decisions that matter:
* Each attachment has its own thread while there is work, so a hanging server delays only its own devices.
* We record an ordered change before it begins, and forget the old state only when it is done. So if a monitor is killed
  in between, the next one finishes the change. If we cannot record the change, we do not begin it.
* With one connection, queue/io_timeout stays as connect has set it. With several, the driver takes a connection for
  dead if a request reaches that age, so connect requires the user to set it (--io-timeout).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

from nbdattach.attached import same_export, state
from nbdattach.attached.users import kept_open_by, opened, users_of
from nbdattach.clock import boot_time, now
from nbdattach.connection.client import Connection, silent
from nbdattach.connection.kernel_socket import Link
from nbdattach.connection.stream import address_of, remember
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, KernelRefused, NbdattachError, Refused, TlsFailed
from nbdattach.host.log import Log
from nbdattach.host.procfs import started
from nbdattach.kernel import netlink, settings
from nbdattach.kernel.node import Busy, Node
from nbdattach.kernel.sysfs import Kernel
from nbdattach.monitor.links import NOTICED, Gone, Links
from nbdattach.monitor.outage import FRUITLESS, Outage, Terms
from nbdattach.protocol import transmission
from nbdattach.protocol.target import Target
from nbdattach.relay.dialer import Carrier, Relay

Done: TypeAlias = Callable[[str | NbdattachError], None]

_UNKNOWN_ROUND_TRIP = 0.4
# After an error of this machine (no memory, no space in /run), before the next try.
_OWN_TROUBLE = 1.0
# Time for the peer to read the data already sent to it, before we reset a connection.
_BURIAL = 2.0
# How long a planned hand-over waits for a moment without requests in flight, so that none has to be sent again.
_QUIET = 1.0
# How long a change of the size waits for such a moment. The kernel itself would wait without limit, and accept no other
# message meanwhile.
_QUIET_FOR_SIZE = 10.0


class Watch:
    """All methods may be called from any thread; none waits for a server, except those that say so."""

    def __init__(
        self, device: Device, record: state.Record, links: list[Link], log: Log, relay: Relay | None = None
    ) -> None:
        self.device = device
        self._record = record
        self._links = Links(device, record, links)
        self._log = log
        transport = record.tls and record.tls.get("transport")
        wanted = "relay" if transport == "relay" else record.tls_transport
        self._carrier = Carrier(wanted, relay, was_in_kernel=transport == "kernel")
        self._kernel = Kernel(device)
        # Protects the list of work; held for moments only.
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._check = False
        self._held = 0  # by so many commands
        self._ended = False
        self._orders: list[tuple[Callable[[], str], Done]] = []
        # Protects messages to the kernel, and our links; may be held as long as a burial takes.
        self._at_kernel = threading.RLock()
        self._inside = 0  # the thread that holds it
        self._terms = Terms(record.on_loss, record.dead_peer, record.connect_timeout)
        self._outage: Outage | None = None
        self._last_outage: Outage | None = None
        self._settled = False
        self._unsaved = False  # whether the record is not saved, because /run was full
        self._ready = False  # whether we can dial without reading a disk
        self._told: set[str] = set()
        if record.address:
            remember(record.place(), record.address)
        self._round_trip = self._links.round_trip or _UNKNOWN_ROUND_TRIP

    @property
    def target(self) -> str:
        """As recorded."""
        return self._record.target

    # -- called by the monitor -------------------------------------------------------------------------------------

    def check(self) -> None:
        """Starts a check, because a connection may have died."""
        with self._news:
            self._check = True
            self._start()

    def hear(self) -> None:
        """The driver reports a dead connection; it may be one that we replaced long ago, or one that seems alive."""
        self._links.doubt()
        if self._at_kernel.acquire(blocking=False):  # if not, the thread or `tick` does this
            try:
                if not self._held:
                    self._links.drop_undelivered()
            finally:
                self._at_kernel.release()
        self.check()

    def tick(self) -> bool:
        """To be called once a second. False if there is nothing left to watch."""
        if not self._at_kernel.acquire(blocking=False):
            return True  # another thread works on it now
        try:
            if not self._held and not self._ended and not self._links.is_there():
                self._end("no longer attached")
            if self._ended or self._held:
                return not self._ended
            self._links.look()
            self._links.drop_undelivered()
            if self._links.silent or not self._links.is_proven():
                self.check()
            if self._unsaved:
                self._remember_when_possible()
            return True
        finally:
            self._at_kernel.release()

    def hold(self) -> None:
        """From its return until `release`, no thread of ours touches the device. May take some seconds."""
        with self._news:
            self._held += 1
            self._news.notify_all()
        with self._at_kernel:
            return

    def release(self) -> None:
        with self._news:
            self._held -= 1
            if self._held:
                return
        # A detach deletes the record, though the device may stay until its last user has closed it.
        with contextlib.suppress(OSError):  # if we cannot read it now, the thread does later
            if not (self._links.is_there() and state.remembers(self.device)):
                self._end("no longer attached")
        self.check()

    def cut(self) -> None:
        """Shuts down the connections, which are of no use any more: a send over them gets an error."""
        self._links.cut()

    def cut_off(self) -> None:
        """Cuts the connections, because the server is being shut down and fails each request while they last."""
        if not self._held and not self._ended and self._links.alive:
            self._log(f"{self.device.name}: {self._target().uri} is being shut down, and refuses requests: cut off")
            self._links.cut()
            self.check()

    def reconnect(self, target: Target | None, done: Done) -> None:
        """A planned hand-over to new connections, of `target` if one is named. `done` is called with the outcome."""
        self._order(lambda: self._carry_over(target), done)

    def resize(self, done: Done) -> None:
        """Asks the server for the size and applies it. `done` is called with the outcome."""
        self._order(self._take_new_size, done)

    def give_way(self) -> None:
        """Another watch has taken over."""
        self._end(None)

    def stop(self) -> None:
        """The monitor ends; the attachment stays, in a state that needs no monitor."""
        self._end(None)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _order(self, order: Callable[[], str], done: Done) -> None:
        with self._news:
            if not self._ended:
                self._orders.append((order, done))
                self._start()
                return
        done(_gone(self.device))

    def _start(self) -> None:
        self._news.notify_all()
        if self._thread is None and not self._ended:
            thread = threading.Thread(target=self._run, name=self.device.name, daemon=True)
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        try:
            while self._work():
                pass
        except Gone:
            self._end("no longer attached")
        except Exception as error:
            self._end(f"can no longer be watched: {type(error).__name__}: {error}")
            raise

    def _work(self) -> bool:
        """Does all the work there is. True if it must be called again, because of an error of this machine."""
        try:
            with netlink.Family() as self._links.family:
                while work := self._next_work():
                    work()
            return False
        except OSError as error:
            self._log(f"{self.device.name}: {error}; once more")
            with self._news:
                self._check = True
                self._news.wait_for(lambda: bool(self._held) or self._ended, timeout=_OWN_TROUBLE)
            return True

    def _next_work(self) -> Callable[[], None] | None:
        with self._news:
            self._news.wait_for(lambda: not self._held or self._ended)
            if self._ended or not (self._orders or self._check):
                self._thread = None
                return None
            if self._orders:
                order, done = self._orders.pop(0)
                return lambda: self._obey(order, done)
            self._check = False
            return self._mend

    def _obey(self, order: Callable[[], str], done: Done) -> None:
        try:
            done(order())
        except NbdattachError as error:
            done(error)
        except Gone:
            done(_gone(self.device))
            raise
        except OSError as error:
            done(KernelRefused.at(self.device.path, error.filename or "changing the connection", error.errno or 0))
        except Exception as error:
            done(KernelRefused(self.device.path, f"{type(error).__name__}: {error}", "see the monitor's log"))
            raise

    # -- mending ---------------------------------------------------------------------------------------------------

    def _mend(self) -> None:
        """Works until no connection is dead or silent, or until there is an order to obey first."""
        if not self._ready:
            self._ready = True
            self._carrier.get_ready(self._target())
        without_pause = self._record.connections  # a server may accept each new connection and end it at once
        while outage := self._trouble_now():
            without_pause -= 1
            if (outage.resumed or outage.fruitless or without_pause < 0) and not self._go_on(outage):
                return
            while not self._try_once(outage):
                if not self._go_on(outage):
                    return
        self._recovered()

    def _go_on(self, outage: Outage) -> bool:
        """Whether to try again, after a pause; False when something else comes first."""
        self._fail_when_due(outage)
        return self._pause(outage)

    def _trouble_now(self) -> Outage | None:
        with self._kernel_calls():
            dead = self._links.has_dead()
            return self._in_outage(dead) if dead or self._links.silent else None

    def _in_outage(self, dead: bool) -> Outage:
        with self._kernel_calls():
            outage = self._outage = self._outage or self._last_one_again() or self._known_outage()
            self._see_what_lives(outage)
            if dead and not outage.told:
                outage.told = True
                self._log(f"{self.device.name}: connection to {self._target().uri} lost; {self._consequence(outage)}")
                self._say_trouble(outage)
            return outage

    def _see_what_lives(self, outage: Outage) -> None:
        """One of several connections may serve all requests; it may be lost or recover while we dial others."""
        self._links.drop_undelivered()
        stuck = self._links.stuck
        if stuck or not self._links.alive:
            outage.lose(boot_time() - stuck)
            return
        answering = self._links.answering
        outage.keep(answering and not self._links.has_served_nothing(FRUITLESS))
        if answering and outage.failing:
            self._links.be_patient(self._record.on_loss)
            outage.failing = False

    def _known_outage(self) -> Outage:
        """A new outage, or the recorded one of the monitor before us, which may have been killed during it."""
        known = state.trouble_of(self.device)
        if known is None or known.began is None:
            return Outage(self._terms, boot_time(), now())
        began = min(known.began, boot_time())  # `began` may be ahead: silence counts as a loss only after --dead-peer
        failing = known.state == "lost"
        if failing:
            self._links.are_failing()
        return Outage(self._terms, began, known.since, died=known.began, failing=failing)

    def _last_one_again(self) -> Outage | None:
        """The last outage goes on if a new connection died at once, or no request was done since.

        If another one answers, we cannot know which of them has served a request.
        """
        links = self._links
        goes_on = links.has_served_nothing(FRUITLESS) or (links.answering and links.since_hand_over < FRUITLESS)
        return self._last_outage.again() if self._last_outage and goes_on else None

    def _consequence(self, outage: Outage) -> str:
        if self._links.answering:
            return "another one serves"
        if not outage.until_failing(boot_time()):
            return "requests fail"
        on_loss = self._record.on_loss
        return "requests wait for it" if on_loss is None else f"requests wait {on_loss:g} s"

    def _try_once(self, outage: Outage) -> bool:
        """One try to replace a dead or silent connection; True if, as far as we know, none is left to replace."""
        try:
            fresh = self._dial_quickly(outage)
        except NbdattachError as error:
            self._note_failure(outage, error)
            self._give_up_silent(outage)
            return self._is_well()
        try:
            with self._kernel_calls():
                return self._replace_by(fresh, outage)
        except Gone:
            self._say_goodbye(fresh)
            raise

    def _replace_by(self, fresh: Connection, outage: Outage) -> bool:
        if self._is_well():
            self._say_goodbye(fresh)
            return True
        for link in self._links.silent:
            link.cut()
        self._in_outage(dead=True)
        # One useless connection proves nothing yet, a second one does. Requests then fail before the next connection
        # comes, and this one would be idle until they have.
        if outage.fruitless > 1 and not outage.until_failing(boot_time()):
            self._say_goodbye(fresh)
            return False
        if not self._hand_over(fresh, Deadline(NOTICED)):
            return False
        outage.gain()
        return True

    def _is_well(self) -> bool:
        """Whether a connection that was silent has recovered by itself, and none is dead."""
        with self._kernel_calls():
            return self._links.are_well()

    def _give_up_silent(self, outage: Outage) -> None:
        """Cuts silent connections, because a new one fails, too: requests now wait in the driver for a good one."""
        with self._kernel_calls():
            if self._links.silent and outage.give_up_silent(self._links.silence, boot_time()):
                # All of them: a living one would serve new requests while the silent one still has older ones.
                self._links.cut()
                self._in_outage(dead=True)

    def _note_failure(self, outage: Outage, error: NbdattachError) -> None:
        if str(error) != outage.error:
            outage.error, outage.said = str(error), -math.inf
            self._log(f"{self.device.name}: {error}")

    def _pause(self, outage: Outage) -> bool:
        """Waits before the next try; False when something else comes first."""
        seconds = outage.pause(boot_time(), random.random())  # noqa: S311 - no secret
        if outage.may_say(boot_time()):
            with self._kernel_calls():
                self._say_trouble(outage, seconds)
        with self._news:
            if self._news.wait_for(lambda: self._orders or self._held or self._ended, timeout=seconds):
                self._check = True  # go on here afterwards
                return False
        return True

    def _fail_when_due(self, outage: Outage) -> None:
        """If --on-loss has passed, waiting requests fail, and new ones fail at once."""
        with self._kernel_calls():
            self._see_what_lives(outage)
            if outage.until_failing(boot_time()) > 0 or self._is_well():
                return
            self._links.fail_requests()
            outage.failing = True
            self._say_trouble(outage)
        seconds = self._record.on_loss
        self._log(f"{self.device.name}: {self._target().uri} is away for more than {seconds:g} s; requests fail now")
        if outage.fruitless:  # if not, the next connection may serve the requests under way
            self._links.await_failure(lambda: not (self._orders or self._held or self._ended))

    def _recovered(self) -> None:
        """The driver has all its connections again: the outage is over."""
        with self._kernel_calls():
            outage = self._outage
            if outage is None and self._settled:
                return
            self._settle()
            self._outage, self._last_outage = None, outage
            if outage and outage.told:
                seconds = outage.age(boot_time())
                self._log(f"{self.device.name}: {self._target().uri} connected again after {seconds:.1f} s")
            self._tell_differences()
            self._have_moved()

    def _tell_differences(self) -> None:
        """Logs queue settings that another program changed. To restore them, the kernel would wait for all requests."""
        record = self._record
        for line in settings.differences(self.device, record.flags, record.max_sectors_kb, record.block_size):
            if line not in self._told:
                self._told.add(line)
                self._log(line)

    def _settle(self) -> None:
        self._settled = False  # in case the message to the driver fails
        self._links.settle(self._record.on_loss)
        self._settled = True
        state.save_trouble(self.device, None)

    # -- orders ----------------------------------------------------------------------------------------------------

    def _carry_over(self, target: Target | None) -> str:
        self._see_we_can_replace()
        place = target or self._target()
        if self._record.tls and not place.tls:
            cause = "that is in the clear, and the device was attached over TLS"
            raise TlsFailed(place.uri, cause, "nbds:// reaches it over TLS; else disconnect, and connect without")
        fresh = self._dial_all(place, self._record.size)
        if target:
            self._begin(fresh, moving_to=target.uri, moving_trust=state.trust_of(target))
        self._replace_all(fresh)
        self._have_moved()
        self._log(f"{self.device.name}: handed over to {place.uri}")
        return place.uri

    def _have_moved(self) -> None:
        """Records the new server and forgets the one before."""
        moved = self._record
        if moved.moving_to:
            self._remember_when_possible(
                target=moved.moving_to, trust=moved.moving_trust, moving_to="", moving_trust=None
            )

    def _take_new_size(self) -> str:
        self._see_we_can_replace()
        if not self._kernel.counts_requests:
            raise _uncounted(self.device)
        probe = self._dial(self._target(), any_size=True)
        size, block = probe.export.size, self._record.block_size
        self._say_goodbye(probe)
        before, wanted = self._kernel.size, size // block * block
        if not wanted:
            raise Refused(self._record.target, f"the export has {size} bytes, less than a block", "is its image empty?")
        if (size, before) == (self._record.size, wanted):
            return f"{size} bytes, as before"
        with self._nobody_uses_it() if wanted < before else contextlib.nullcontext():
            fresh = self._dial_all(self._target(), size)
            if not self._is_lost() and not self._links.await_quiet(_QUIET_FOR_SIZE):
                self._say_goodbye(*fresh)
                raise _busy(self.device, "the size is as before")
            self._begin(fresh, new_size=size)
            self._replace_all(fresh)
            self._set_size(wanted)
        self._remember_when_possible(size=size, new_size=None)
        self._log(f"{self.device.name}: {size} bytes now, {before} before")
        return f"{size} bytes now, {before} before"

    def _is_lost(self) -> bool:
        """Whether a connection is dead: then requests may be waiting for the very server that has the new size."""
        with self._kernel_calls():
            return self._links.has_dead()

    def _set_size(self, wanted: int) -> None:
        patience = Deadline(_QUIET_FOR_SIZE)
        while True:
            quiet = self._links.await_quiet(patience.remaining())
            with self._kernel_calls():
                if quiet and not self._kernel.pending:
                    self._links.set_size(wanted)
                    return
            if patience.passed:
                raise _busy(self.device, "it is connected anew, and its size is as before")

    def _nobody_uses_it(self) -> contextlib.AbstractContextManager[object]:
        """Claims the device, so that no program uses the part that goes. Raises `DeviceInUse`."""
        users = users_of(self.device)
        if not users:
            with contextlib.suppress(Busy):
                node = Node.claim(self.device)
                users = opened(kept_open_by(self.device, node.fd))
                if not users:
                    return node
                node.close()
        raise DeviceInUse(
            self.device.path,
            f"the export has shrunk, and the device is {users or 'open exclusively'}",
            "release the device before it is made smaller",
            users.lines,
        )

    def _see_we_can_replace(self) -> None:
        """Only a process that holds the socket of a living connection can end it. Raises `KernelRefused`."""
        if self._links.complete:
            return
        with self._kernel_calls():
            if self._record.connections == 1 and self._links.has_dead():
                return
        raise KernelRefused(
            self.device.path,
            "the monitor was restarted after the connection was made, and cannot end it while it lives",
            "once the server has ended it, the monitor makes a new one",
        )

    def _dial_all(self, target: Target, size: int) -> list[Connection]:
        made: list[Connection] = []
        try:
            for _ in range(self._record.connections):
                made.append(self._dial(target, size=size))
        except NbdattachError:
            self._say_goodbye(*made)
            raise
        return made

    def _begin(self, fresh: list[Connection], **changes: object) -> None:
        """Records the change that is about to begin and the new server's address; if that fails, nothing changes."""
        before = self._record
        try:
            self._remember(address=address_of(fresh[0].stream.sock), **changes)
        except OSError:
            self._record = before
            self._say_goodbye(*fresh)
            raise

    def _replace_all(self, fresh: list[Connection]) -> None:
        """Replaces every connection by a new one; the driver sends requests in flight again over those."""
        self.check()  # runs afterwards: a connection that we did not hold may still be dead
        with self._kernel_calls():
            if not self._links.has_dead():  # if one is dead, requests wait for this very replacement
                self._links.await_quiet(_QUIET)
            self._links.cut()
            noticed = Deadline(NOTICED)  # for all together, because a command that wants to hold the device waits
            taken = [self._hand_over(connection, noticed) for connection in fresh]
            self._outage = self._last_outage = None  # a later outage is a new one
            self._settle()
        if not all(taken):
            cause = "the driver did not take the new connection"
            raise KernelRefused(self.device.path, cause, "the monitor goes on trying: see nbdattach status")

    def _remember(self, **changes: object) -> None:
        with self._kernel_calls():
            self._record = dataclasses.replace(self._record, **changes)  # type: ignore[arg-type]
            state.save(self.device, self._record)
            self._unsaved = False

    def _remember_when_possible(self, **changes: object) -> None:
        """If /run is full, the change is not undone, because it has happened; it is recorded as soon as possible."""
        try:
            self._remember(**changes)
        except OSError as error:
            if not self._unsaved:
                self._log(f"{self.device.name}: {error}; it is written down later")
            self._unsaved = True

    # -- connections -----------------------------------------------------------------------------------------------

    def _target(self) -> Target:
        return self._record.place()

    def _dial_quickly(self, outage: Outage) -> Connection:
        """Dials with short limits, because a device waits for it. Raises `NbdattachError`."""
        moment = boot_time()
        connect_within = outage.connect_within(self._round_trip, moment)
        return self._dialled(self._target(), outage.dial_within(moment), connect_within)

    def _dial(self, target: Target, size: int | None = None, any_size: bool = False) -> Connection:
        """A connection to the attached export, which may have another size with `any_size`. Raises `NbdattachError`."""
        began = time.monotonic()
        made = self._dialled(target, self._record.connect_timeout, math.inf, size, any_size)
        self._round_trip = max(self._round_trip, time.monotonic() - began)
        return made

    def _dialled(
        self, target: Target, within: float, connect_within: float, size: int | None = None, any_size: bool = False
    ) -> Connection:
        record = self._record
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
            self._say_goodbye(made)
            hint = f"nbdattach resize {self.device.path} takes another size; nothing else will do"
            raise Refused(target.uri, differs, hint)
        made.stream.sock.settimeout(None)
        return made

    def _hand_over(self, fresh: Connection, noticed: Deadline) -> bool:
        """Buries dead connections, then gives the driver this one in place of a dead one; whether it took it."""
        burial = Deadline(_BURIAL)
        self._links.bury_dead(burial)
        self._carrier.bury(burial)
        if not self._links.hand_over(Link(fresh.stream.sock), noticed):
            self._say_goodbye(fresh)
            return False
        relay = fresh.relay.pid if fresh.relay else None
        if (fresh.tls, relay) != (self._record.tls, self._record.relay):
            self._remember_when_possible(tls=fresh.tls, relay=relay, relay_started=relay and started(relay))
        return True

    def _say_goodbye(self, *connections: Connection) -> None:
        for connection in connections:
            with contextlib.suppress(NbdattachError):
                connection.stream.run(transmission.disconnect())
            connection.stream.close()

    # -- helpers ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _kernel_calls(self) -> Iterator[None]:
        """Waits while a command holds us; raises `Gone` if the attachment is another one by now. May be nested."""
        if self._inside == threading.get_ident():
            yield
            return
        while True:
            with self._news:
                self._news.wait_for(lambda: not self._held or self._ended)
            with self._at_kernel:
                if self._held:
                    continue
                if self._ended or not self._links.is_there():
                    raise Gone
                self._inside = threading.get_ident()
                try:
                    yield
                finally:
                    self._inside = 0
                return

    def _say_trouble(self, outage: Outage, pause: float | None = None) -> None:
        """Reports the outage to `status`; if /run is full, `status` does without."""
        outage.said = boot_time()
        word = "lost" if outage.failing else "reconnecting"
        next_try = None if pause is None else now(pause)
        with contextlib.suppress(OSError):
            state.save_trouble(
                self.device, state.Trouble(word, outage.since, next_try, outage.error, outage.died or outage.began)
            )

    def _end(self, why: str | None) -> None:
        # Waits until a message to the kernel that is under way has been answered.
        with self._at_kernel, self._news:
            if self._ended:
                return
            self._ended = True
            self._thread = None
            self._news.notify_all()
            self._links.close()
            self._carrier.close()
            unheard, self._orders = self._orders, []
        for _, done in unheard:
            done(_gone(self.device))
        if why:
            self._log(f"{self.device.name}: {why}")


def _gone(device: Device) -> NbdattachError:
    return KernelRefused(device.path, "no longer attached, or not by netlink", "see nbdattach status")


def _busy(device: Device, so: str) -> NbdattachError:
    cause = f"it has had requests under way for {_QUIET_FOR_SIZE:g} s, and the kernel waits for them; {so}"
    return KernelRefused(device.path, cause, f"once it is less busy: nbdattach resize {device.path}")


def _uncounted(device: Device) -> NbdattachError:
    cause = "the kernel does not count its requests, so nothing tells whether any are under way; the size is as before"
    return KernelRefused(device.path, cause, f"echo 1 >/sys/block/{device.name}/queue/iostats")
