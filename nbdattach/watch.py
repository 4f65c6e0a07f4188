# SPDX-License-Identifier: GPL-2.0-or-later
"""One attachment under the monitor's eyes: notices what died, dials again, and hands the kernel what fits.

Decisions that matter:
* We hold duplicates of the kernel's sockets, which show what is dead. A monitor that was restarted holds none; it asks
  the kernel: a scout (`link.Scout`) is taken where a connection is dead, and dropped where all live.
* That the kernel took a connection is seen, not believed: RECONFIGURE says nothing of it. Where the device has a
  timeout, the driver sets it on the socket; where it has none, a scout that is taken before and others that are dropped
  afterwards show it. The latter alone do not: the driver drops all while it has not seen the connection before end, and
  on a busy machine it may be late. So until a request is done, it is asked again.
* Each attachment has a thread of its own while something is to be done, and none else: a hanging server delays nobody.
* The limits of the queue are never written here: on newer kernels that waits for all requests in flight, for ever when
  their server is gone. With one connection queue/io_timeout stays as connect has set it; with several, the driver's own
  timeout (NBD_ATTR_TIMEOUT) does the same, and can be changed at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

from nbdattach import identity, netlink, state, transmission
from nbdattach.backend import PATIENT_MS
from nbdattach.carrier import Carrier, Relay
from nbdattach.client import Connection, silent
from nbdattach.clock import now, seconds_since
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, KernelRefused, NbdattachError, Refused, TlsFailed
from nbdattach.link import Link, Scout
from nbdattach.log import Log
from nbdattach.netlink_backend import RESEND_SECONDS, dead_conn_timeout, resend_ms
from nbdattach.node import Busy, Node
from nbdattach.process import started
from nbdattach.stream import remember
from nbdattach.sysfs import Kernel, identifier
from nbdattach.target import Target
from nbdattach.users import kept_open_by, opened, users_of

Done: TypeAlias = Callable[[str | NbdattachError], None]

# Between tries: at once, then a share of the time that the server has been away, and never longer than MAX_PAUSE.
FIRST_PAUSE = 0.25
MAX_PAUSE = 5.0
_SHARE = 80
# What TCP has for one try: a SYN that was lost, or sent into a cut link, must not hold up the next one.
_LEAST_CONNECT = 0.5
_LEAST_DIAL = 3.0
_ROUND_TRIPS = 5
_UNKNOWN_ROUND_TRIP = 0.4
# With several connections: by how much the age grows at which a request counts as lost, when a server is that slow;
# and after how many seconds without trouble it is as at first.
_MORE_PATIENCE = 15
_CALM = 600.0
# Seconds within which a new connection that has served nothing may not die, to count as an end of the trouble.
_FRUITLESS = 10.0
# After an error of this machine (no memory, no space in /run), before the next try.
_OWN_TROUBLE = 1.0
# Many devices may lose one server at once, so status is told no more often than anybody looks at it.
_SAY_AGAIN = 1.0
# What the peer has for reading what was sent to it, before a connection is reset.
_BURIAL = 2.0
# The driver notices a connection that was shut down almost at once; a busy machine may need this many seconds.
_NOTICED = 10.0
# How late it may be to see a scout end; and how long, once a second, it is asked whether it uses a new connection.
_LATE = 0.1
_DOUBT = 10.0
_POLL = 0.005
# How long a planned hand-over waits for a moment without requests in flight: none has to be sent again then.
_QUIET = 1.0
_QUICK_POLL = 0.0005


class _Gone(Exception):
    """The attachment that is watched is no longer there."""


@dataclasses.dataclass(slots=True)
class _Outage:
    """From the first sign of trouble to its end. Times on the monotonic clock."""

    began: float
    since: str
    error: str = ""
    said: float = -math.inf  # when status was last told
    died: float | None = None  # since when a connection has been known to be dead, and not only silent
    told: bool = False  # so have the driver and the log
    failing: bool = False  # requests fail, as --on-loss says
    fruitless: bool = False  # it seemed to be over, but not one request was done before the next connection died


class Watch:
    """All methods may be called from any thread; none waits for a server, but for those that say so."""

    def __init__(
        self, device: Device, record: state.Record, links: list[Link], log: Log, relay: Relay | None = None
    ) -> None:
        self.device = device
        self._record = record
        self._links = links
        self._log = log
        transport = record.tls and record.tls.get("transport")
        wanted = "relay" if transport == "relay" else record.tls_transport
        self._carrier = Carrier(wanted, relay, was_in_kernel=transport == "kernel")
        self._kernel = Kernel(device)
        # What there is to do; held for moments only.
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._check = False
        self._held = False
        self._ended = False
        self._orders: list[tuple[Callable[[], str], Done]] = []
        # Around what the kernel is told, and our links; may be held for as long as a burial takes.
        self._at_kernel = threading.RLock()
        self._family: netlink.Family
        self._inside = 0  # the thread that is there
        self._outage: _Outage | None = None
        # Else the monitor before us has taken its duplicates with it, perhaps in the middle of something.
        self._complete = len(links) == record.connections
        # Whether there is no doubt that the driver uses the connection that it was given last.
        self._proven = True
        self._settled = False
        self._last_outage: _Outage | None = None
        # NBD_ATTR_TIMEOUT, in seconds; 0 where the driver never gives up on a request.
        self._timeout = math.ceil(record.io_timeout) or (RESEND_SECONDS if self._several else 0)
        self._ready = False  # to dial without a disk
        self._last_trouble = -math.inf
        self._more_patient = False
        self._handed_over = (time.monotonic(), self._kernel.completed)
        if record.address:
            remember(record.place(), record.address)
        self._round_trip = max((link.round_trip or 0.0 for link in links), default=_UNKNOWN_ROUND_TRIP)

    # -- what the monitor calls ------------------------------------------------------------------------------------

    def check(self) -> None:
        """Something may have died."""
        with self._news:
            self._check = True
            self._start()

    def tick(self) -> bool:
        """Once a second. False when there is nothing left to watch."""
        if not self._at_kernel.acquire(blocking=False):
            return True  # it is being looked at
        try:
            if not self._held and not self._ended and not self._is_there():
                self._end("no longer attached")
            if self._ended or self._held:
                return not self._ended
            if any(link.silent for link in self._links) or not self._is_proven():
                self.check()
            elif self._more_patient and time.monotonic() - self._last_trouble > _CALM:
                self._more_patient = self._settled = False
                self._timeout = RESEND_SECONDS
                self.check()
            return True
        finally:
            self._at_kernel.release()

    def hold(self) -> None:
        """Hands off: on return nothing of ours touches the device, until `release`. May take some seconds."""
        with self._news:
            self._held = True
            self._news.notify_all()
        with self._at_kernel:
            return

    def release(self) -> None:
        with self._news:
            self._held = False
        # Its record goes with a detach, though the device may stay until the last of its users has closed it.
        if self._is_there() and state.remembers(self.device):
            self.check()
        else:
            self._end("no longer attached")

    def cut(self) -> None:
        """The connections are of no more use: whoever sends over them gets an error."""
        for link in list(self._links):
            link.cut()

    def reconnect(self, target: Target | None, done: Done) -> None:
        """A planned hand-over to new connections, of `target` where one is named. `done` is called with the outcome."""
        self._order(lambda: self._carry_over(target), done)

    def resize(self, done: Done) -> None:
        """Asks the server for the size and applies it. `done` is called with the outcome."""
        self._order(self._take_new_size, done)

    def give_way(self) -> None:
        """Another watch has taken over."""
        self._end(None)

    def stop(self) -> None:
        """The monitor ends; the attachment stays, in a state that needs no monitor."""
        with self._at_kernel:
            if self._several and not self._record.io_timeout and not self._ended and self._is_there():
                with contextlib.suppress(OSError, _Gone), netlink.Family() as self._family:
                    self._reconfigure(timeout=PATIENT_MS // 1000)
            # Before anything else is told to the kernel: the thread may just be about to set the short timeout.
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
        except _Gone:
            self._end("no longer attached")
        except Exception as error:
            self._end(f"can no longer be watched: {type(error).__name__}: {error}")
            raise

    def _work(self) -> bool:
        """All there is to do. True to be called again: this machine was in trouble of its own."""
        try:
            with netlink.Family() as self._family:
                while work := self._next_work():
                    work()
            return False
        except OSError as error:
            self._log(f"{self.device.name}: {error}; once more")
            with self._news:
                self._check = True
                self._news.wait_for(lambda: self._held or self._ended, timeout=_OWN_TROUBLE)
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
        except _Gone:
            done(_gone(self.device))
            raise
        except OSError as error:
            done(KernelRefused.at(self.device.path, "changing the connection", error.errno or 0))

    # -- mending ---------------------------------------------------------------------------------------------------

    def _mend(self) -> None:
        """Until the driver has no dead connection, and none is silent; or until there is an order to obey first."""
        if not self._ready:
            self._ready = True
            self._carrier.get_ready(self._target())
        while outage := self._trouble_now():
            if outage.fruitless and not self._go_on(outage):
                return
            while not self._try_once(outage):
                if not self._go_on(outage):
                    return
        self._recovered()

    def _go_on(self, outage: _Outage) -> bool:
        """Whether to try again, after a pause; False when something else comes first."""
        return self._fail_when_due(outage) or self._pause(outage)

    def _trouble_now(self) -> _Outage | None:
        dead = self._has_dead()
        if dead or any(link.silent for link in self._links):
            return self._in_outage(dead)
        return None

    def _has_dead(self) -> bool:
        """Whether the driver counts a connection as dead, or will in a moment."""
        with self._kernel_calls():
            if not self._complete:
                return self._scout()
            if not self._proven and self._scout():
                for link in self._links:
                    link.cut()  # the driver has dropped it
            return len(self._links) < self._record.connections or any(link.over for link in self._links)

    def _is_proven(self) -> bool:
        """A request that was done since, or a driver that has wanted no other connection for long, proves it."""
        moment, completed = self._handed_over
        self._proven = self._proven or completed != self._kernel.completed or time.monotonic() - moment > _DOUBT
        return self._proven

    def _scout(self) -> bool:
        """Asks the driver. Requests that wait for a connection wake up, find this one dead, and wait again."""
        with Scout() as scout:
            self._reconfigure(sockets=[scout.fileno()])
            return scout.was_taken()

    def _in_outage(self, dead: bool) -> _Outage:
        with self._kernel_calls():
            outage = self._outage = self._outage or self._last_one_again() or self._known_outage()
            if dead:
                self._judge_slowness(outage)
            if dead and not outage.told:
                outage.told = True
                outage.died = outage.died or time.monotonic()
                self._log(f"{self.device.name}: connection to {self._record.target} lost; {self._consequence()}")
                self._say_trouble(outage)
            return outage

    def _known_outage(self) -> _Outage:
        """A new one, or that of the monitor before this one, which may have been killed meanwhile."""
        known = state.trouble_of(self.device)
        if known is None:
            return _Outage(time.monotonic(), now())
        began = time.monotonic() - seconds_since(known.since)
        return _Outage(began, known.since, died=began, failing=known.state == "lost")

    def _last_one_again(self) -> _Outage | None:
        """Where not one request was done since, and a connection dies as soon as it has come, nothing is over yet."""
        moment, completed = self._handed_over
        if self._last_outage and completed == self._kernel.completed and time.monotonic() - moment < _FRUITLESS:
            return dataclasses.replace(self._last_outage, fruitless=True, told=False)
        return None

    def _consequence(self) -> str:
        on_loss = self._record.on_loss
        if on_loss is None:
            return "requests wait for it"
        return f"requests wait {on_loss:g} s" if on_loss else "requests fail"

    def _try_once(self, outage: _Outage) -> bool:
        """One try to replace what is dead or silent; True when there is nothing left to replace as far as we know."""
        try:
            fresh = self._dial(self._target(), quick=True)
        except NbdattachError as error:
            self._note_failure(outage, error)
            self._give_up_silent(outage)
            return False
        with self._kernel_calls():
            quiet = [link for link in self._links if link.silent]
            if not outage.died and not quiet:  # it has recovered by itself
                self._say_goodbye(fresh)
                return True
            for link in quiet:
                link.cut()
            self._in_outage(dead=True)
            return self._hand_over(fresh)

    def _give_up_silent(self, outage: _Outage) -> None:
        """Neither the old connections get through nor a new one: what comes now shall wait for a good one.

        Where requests are to fail at the loss of a connection, it is not lost before --dead-peer says so.
        """
        with self._kernel_calls():
            if outage.died or self._record.on_loss == 0 or not any(link.silent for link in self._links):
                return
            for link in self._links:
                link.cut()
            outage.died = time.monotonic() + max(0.0, self._record.dead_peer - self._age())
            self._in_outage(dead=True)

    def _note_failure(self, outage: _Outage, error: NbdattachError) -> None:
        if str(error) != outage.error:
            outage.error, outage.said = str(error), -math.inf
            self._log(f"{self.device.name}: {error}")

    def _pause(self, outage: _Outage) -> bool:
        """Waits before the next try; False when something else comes first."""
        age = time.monotonic() - outage.began
        seconds = min(pause_after(age) * random.uniform(0.8, 1.2), self._until_failing())  # noqa: S311 - no secret
        if time.monotonic() - outage.said >= _SAY_AGAIN:
            with self._kernel_calls():
                self._say_trouble(outage, seconds)
        with self._news:
            if self._news.wait_for(lambda: self._orders or self._held or self._ended, timeout=seconds):
                self._check = True  # go on here afterwards
                return False
        return True

    def _fail_when_due(self, outage: _Outage) -> bool:
        """When --on-loss has had its time, what waits fails, and what comes fails at once. True when it did so now."""
        if self._until_failing() > 0:
            return False
        with self._kernel_calls():
            self._reconfigure(dead_conn_timeout=0)
            self._scout()  # so that what waits finds out
            outage.failing = True
            self._say_trouble(outage)
        seconds = self._record.on_loss
        self._log(f"{self.device.name}: {self._record.target} is away for more than {seconds:g} s; requests fail now")
        return True

    def _until_failing(self) -> float:
        """Seconds; infinite where nothing is to fail, or does already."""
        outage, on_loss = self._outage, self._record.on_loss
        if outage is None or outage.failing or outage.died is None or on_loss is None:
            return math.inf
        return max(0.0, outage.died + on_loss - time.monotonic())

    def _recovered(self) -> None:
        """The driver has all its connections: as they were before."""
        with self._kernel_calls():
            self._complete = len(self._links) == self._record.connections
            outage, self._outage = self._outage, None
            if outage is None and self._settled:
                return
            self._settle()
            state.save_trouble(self.device, None)
            self._last_outage, self._last_trouble = outage, time.monotonic()
            if outage and outage.told:
                seconds = self._last_trouble - outage.began
                self._log(f"{self.device.name}: {self._record.target} connected again after {seconds:.1f} s")

    def _settle(self) -> None:
        patience = math.inf if self._record.on_loss is None else self._record.on_loss
        # With one connection and no timeout nothing may be said of it: the driver would set queue/io_timeout, too.
        self._reconfigure(dead_conn_timeout=dead_conn_timeout(patience), timeout=self._timeout or None)
        self._settled = True

    # -- orders ----------------------------------------------------------------------------------------------------

    def _carry_over(self, target: Target | None) -> str:
        self._see_we_can_replace()
        place = target or self._target()
        if self._record.tls and not place.tls:
            cause = "that is in the clear, and the device was attached over TLS"
            raise TlsFailed(place.uri, cause, "nbds:// reaches it over TLS; else disconnect, and connect without")
        self._replace_all(self._dial_all(place, self._record.size))
        if target:
            self._remember(target=target.uri, trust=state.trust_of(target))
        self._log(f"{self.device.name}: handed over to {place.uri}")
        return place.uri

    def _take_new_size(self) -> str:
        self._see_we_can_replace()
        probe = self._dial(self._target(), any_size=True)
        size, block = probe.export.size, self._record.block_size
        self._say_goodbye(probe)
        before, wanted = self._kernel.size, size // block * block
        if not wanted:
            raise Refused(self._record.target, f"the export has {size} bytes, less than a block", "is its image empty?")
        if (size, before) == (self._record.size, wanted):
            return f"{size} bytes, as before"
        with self._nobody_uses_it() if wanted < before else contextlib.nullcontext():
            self._replace_all(self._dial_all(self._target(), size), size=wanted)
        self._remember(size=size)
        self._log(f"{self.device.name}: {size} bytes now, {before} before")
        return f"{size} bytes now, {before} before"

    def _nobody_uses_it(self) -> contextlib.AbstractContextManager[object]:
        """Nobody may use what goes, and nobody may begin to."""
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
        """A living connection can only be ended by who holds its socket."""
        if not self._complete and not (self._record.connections == 1 and self._has_dead()):
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
            for connection in made:
                self._say_goodbye(connection)
            raise
        return made

    def _replace_all(self, fresh: list[Connection], size: int | None = None) -> None:
        """Every connection by a new one; what was in flight is sent again over those. Then the size, in bytes."""
        with self._kernel_calls():
            self._await_quiet()
            for link in self._links:
                link.cut()
            taken = [self._hand_over(connection) for connection in fresh]
            self._outage = None
            self._settle()
            if size is not None:
                self._set_size(size)
            state.save_trouble(self.device, None)
        self.check()  # what we did not hold may be dead still
        if not all(taken):
            cause = "the driver did not take the new connection"
            raise KernelRefused(self.device.path, cause, "the monitor goes on trying: see nbdattach status")

    def _await_quiet(self) -> None:
        quiet = Deadline(_QUIET)
        while self._kernel.inflight and quiet.sleep(_QUICK_POLL):
            pass

    def _set_size(self, size: int) -> None:
        """Newer kernels wait for all requests in flight; should their server go now, a timeout ends that wait."""
        if not self._timeout:
            self._reconfigure(timeout=RESEND_SECONDS)
        self._await_quiet()
        self._reconfigure(size=size)
        if not self._timeout:
            self._reconfigure(timeout=0)
            self._await_quiet()
            self._kernel.set_queue("io_timeout", resend_ms(self._record.on_loss))

    def _remember(self, **changes: object) -> None:
        with self._kernel_calls():
            self._record = dataclasses.replace(self._record, **changes)  # type: ignore[arg-type]
            state.save(self.device, self._record)

    # -- connections -----------------------------------------------------------------------------------------------

    def _target(self) -> Target:
        return self._record.place()

    def _dial(self, target: Target, size: int | None = None, any_size: bool = False, quick: bool = False) -> Connection:
        """A connection to what is attached, or to the like of it with another size. Raises `NbdattachError`."""
        record = self._record
        began = time.monotonic()
        made = self._carrier.dial(
            target,
            record.dead_peer,
            self._dial_within() if quick else record.connect_timeout,
            silent,
            connect_within=self._connect_within() if quick else math.inf,
            raw_size=record.size if record.raw else None,
        )
        self._round_trip = max(self._round_trip, time.monotonic() - began) if not quick else self._round_trip
        differs = identity.difference(record, made.export, made.export.size if any_size else size)
        if differs:
            self._say_goodbye(made)
            hint = f"nbdattach resize {self.device.path} takes another size; nothing else will do"
            raise Refused(target.uri, differs, hint)
        made.stream.sock.settimeout(None)
        return made

    def _connect_within(self) -> float:
        return max(_LEAST_CONNECT, _ROUND_TRIPS * self._round_trip, pause_after(self._age()))

    def _dial_within(self) -> float:
        """Seconds for one try; a server that has just come up may have lost the first, and never answers that."""
        patience = min(self._record.connect_timeout, max(_LEAST_DIAL, self._age() / 2))
        return max(0.01, min(patience, self._until_failing()))

    def _age(self) -> float:
        return time.monotonic() - self._outage.began if self._outage else 0.0

    def _hand_over(self, fresh: Connection) -> bool:
        """Gives the driver the connection in the place of a dead one; whether it took it. The dead are buried first."""
        burial = Deadline(_BURIAL)
        for link in [link for link in self._links if link.over]:
            link.bury(burial)
            self._links.remove(link)
        self._carrier.bury(burial)
        link = Link(fresh.stream.sock)
        waiting, late = Deadline(_NOTICED), _POLL
        while not self._take(link, late):
            late = min(2 * late, _LATE)
            if link.over or not waiting.sleep(_POLL):
                self._say_goodbye(fresh)
                return False
        self._links.append(link)
        self._proven = bool(self._timeout)
        self._remember_carrier(fresh)
        self._handed_over = (time.monotonic(), self._kernel.completed)
        return True

    def _remember_carrier(self, fresh: Connection) -> None:
        relay = fresh.relay.pid if fresh.relay else None
        if (fresh.tls, relay) != (self._record.tls, self._record.relay):
            self._remember(tls=fresh.tls, relay=relay, relay_started=relay and started(relay))

    def _take(self, link: Link, late: float) -> bool:
        """Whether the driver took it. While it has not seen the old connection end, it drops any other in silence.

        `late` is how many seconds it has to see a scout end.
        """
        if self._timeout:
            self._reconfigure(sockets=[link.fileno()])
            taken = link.limited
            link.unlimited()
            return taken
        # There is one place only. A scout that is taken shows that it is dead; only after that does a scout that is
        # dropped show that the place has been filled.
        if not self._scout():
            return False
        time.sleep(late)
        self._reconfigure(sockets=[link.fileno()])
        if self._scout():
            return False
        # A driver that was late to see the first scout end has dropped both others, and sees it about now.
        time.sleep(_LATE)
        return not self._scout()

    def _say_goodbye(self, connection: Connection) -> None:
        with contextlib.suppress(NbdattachError):
            connection.stream.run(transmission.disconnect())
        connection.stream.close()

    # -- what the kernel is told -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _kernel_calls(self) -> Iterator[None]:
        """None while we are held, and none for an attachment that is another by now. May be nested."""
        if self._inside == threading.get_ident():
            yield
            return
        while True:
            with self._news:
                self._news.wait_for(lambda: not self._held or self._ended)
            with self._at_kernel:
                if self._held:
                    continue
                if self._ended or not self._is_there():
                    raise _Gone
                self._inside = threading.get_ident()
                try:
                    yield
                finally:
                    self._inside = 0
                return

    def _reconfigure(
        self,
        sockets: list[int] | None = None,
        size: int | None = None,
        timeout: int | None = None,
        dead_conn_timeout: int | None = None,
    ) -> None:
        try:
            self._family.reconfigure(
                self.device.index,
                identifier(self._record.tag),
                sockets=sockets or (),
                size=size,
                timeout=timeout,
                dead_conn_timeout=dead_conn_timeout,
            )
        except OSError as error:
            if error.errno == errno.EINVAL:  # another program has ended it, though somebody still uses the device
                raise _Gone from error
            raise

    def _judge_slowness(self, outage: _Outage) -> None:
        """With several connections the driver drops one whose server is slow. Is it that, it shall be dropped later."""
        moment, completed = self._handed_over
        if not self._several or self._record.io_timeout:
            return
        if completed != self._kernel.completed or not self._kernel.inflight:
            return  # it has done something, or had nothing to do
        if time.monotonic() - moment >= self._timeout:
            outage.died = time.monotonic()  # it is not away
            self._timeout = min(self._timeout * _MORE_PATIENCE, PATIENT_MS // 1000)
            self._more_patient, self._settled = True, False
            self._reconfigure(timeout=self._timeout)
            self._log(f"{self.device.name}: the server is slow; it has {self._timeout} s a request now")

    # -- small things ----------------------------------------------------------------------------------------------

    @property
    def _several(self) -> bool:
        return self._record.connections > 1

    def _is_there(self) -> bool:
        return self._kernel.by_netlink and self._kernel.pid == self._record.kernel_pid

    def _say_trouble(self, outage: _Outage, pause: float | None = None) -> None:
        outage.said = time.monotonic()
        word = "lost" if outage.failing else "reconnecting"
        next_try = None if pause is None else now(pause)
        state.save_trouble(self.device, state.Trouble(word, outage.since, next_try, outage.error))

    def _end(self, why: str | None) -> None:
        with self._at_kernel, self._news:
            if self._ended:
                return
            self._ended = True
            self._thread = None
            self._news.notify_all()
            for link in self._links:
                link.close()
            self._carrier.close()
            unheard, self._orders = self._orders, []
        for _, done in unheard:
            done(_gone(self.device))
        if why:
            self._log(f"{self.device.name}: {why}")


def _gone(device: Device) -> NbdattachError:
    return KernelRefused(device.path, "no longer attached, or not by netlink", "see nbdattach status")


def pause_after(age: float) -> float:
    """Seconds to the next try, when the server has been away for `age` seconds."""
    return min(MAX_PAUSE, max(FIRST_PAUSE, age / _SHARE))
