# SPDX-License-Identifier: GPL-2.0-or-later
"""The watch over one attachment: its thread, and all that the monitor tells it.

Theory of operation. The thread exists while there is work: an order of a command, or a connection that is dead or
silent. Orders come first. So a hanging server delays only its own devices.

    access      which thread may touch the device now
    rest        whether the device is idle, so that there is nothing to look at
    recorded    the record of the attachment, in memory and on disk
    links       the connections that the driver has, and its messages
    remembering the content of the disk, and whether a new connection has it
    connecting  new connections: dials them and gives them to the driver
    outage      decides when to dial, when to cut, when requests fail (arithmetic)
    mending     does what `outage` decides
    asking      asks for all devices whether their servers are back, while these threads sleep
    planned     a hand-over or a new size that a command orders

With one connection, queue/io_timeout stays as connect has set it. With several, the driver takes a connection for dead
if a request reaches that age, so connect requires the user to set it (--io-timeout).
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from typing import TypeAlias

from nbdattach.attached import state
from nbdattach.connection.kernel_socket import Link
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import KernelRefused, NbdattachError
from nbdattach.kernel import netlink
from nbdattach.monitor.access import Access
from nbdattach.monitor.connecting import Connecting
from nbdattach.monitor.events import ENDED, STOPPING, TROUBLE, Event, Log, log_of
from nbdattach.monitor.links import Gone, Links
from nbdattach.monitor.mending import Mending
from nbdattach.monitor.planned import Orders
from nbdattach.monitor.recorded import Recorded
from nbdattach.monitor.remembering import Remembering
from nbdattach.monitor.rest import Rest
from nbdattach.protocol.target import Target
from nbdattach.relay.dialer import Relay

Done: TypeAlias = Callable[[str | NbdattachError], None]

# After an error of this machine (no memory, no space in /run), before the next try.
_OWN_TROUBLE = 1.0
# So often a device at rest may be left alone when all others are suspected.
_RESTS = 10


class Watch:
    """All methods may be called from any thread; none waits for a server, except those that say so."""

    def __init__(
        self, device: Device, record: state.Record, links: list[Link], log: Log, relay: Relay | None = None
    ) -> None:
        self.device = device
        log = self.log = log_of(log, device, record.tag, lambda: self._recorded.name)
        self._links = Links(device, record, links)
        self._access = Access(self._is_there)
        self._recorded = Recorded(device, record, self._access, log)
        self._remembering = Remembering(device, self._recorded, self._access, log)
        self._connecting = Connecting(device, self._recorded, self._links, self._remembering, relay, log)
        self._mending = Mending(self._connecting, self._access, self, log)
        self._orders = Orders(self._connecting, self._mending, self._access, log)
        # The list of work, protected by the lock of `changed`.
        self._changed = self._access.changed
        self._thread: threading.Thread | None = None
        self._check = False
        self._rest = Rest(device)
        self._suspected = 0
        self._ordered: list[tuple[Callable[[], str], Done]] = []

    def _is_there(self) -> bool:
        """Whether the attachment is. A detach deletes its record, though the kernel may show it for longer."""
        return self._links.is_there() and self._recorded.is_still_there

    @property
    def target(self) -> str:
        """As users know it."""
        record = self._recorded.record
        return record.server.name if record.server else record.target

    # -- called by the monitor -------------------------------------------------------------------------------------

    def check(self) -> None:
        """Starts a check, because a connection may have died."""
        with self._changed:
            self._check = True
            self._start()

    def hear(self) -> None:
        """The driver reports a dead connection; it may be one that we replaced long ago, or one that seems alive."""
        self._links.doubt()
        with self._access.if_free() as free:  # if not, the thread or `tick` does this
            if free:
                self._links.drop_undelivered()
        self.check()

    def suspect(self) -> None:
        """The driver may have noticed a dead connection without a word to us, as when the kernel has no memory.

        No request waits for a device at rest; the next one ends the rest, and this is called again. But if we are wrong
        about a connection, that one would have to wait.
        """
        self._suspected += 1
        if self._suspected % _RESTS == 0 or not self._is_at_rest:
            self.hear()

    def tick(self) -> bool:
        """To be called once a second. False if there is nothing left to watch."""
        if self._is_at_rest:
            self._links.rest()
            return True
        with self._access.if_free() as free:
            if free and self._thread:
                self._look_beside_it()
            elif free:
                self._look()
        return not self._access.ended

    def _look(self) -> None:
        rest = self._rest.begin()
        if self._ends():
            return
        self._links.look()
        self._tidy()
        if self._links.silent or not self._links.is_proven():
            self.check()
        if self._mending.all_is_well and not self._links.silent and self._remembering.tick():
            self._rest.note(rest)

    def _look_beside_it(self) -> None:
        """The thread looks by itself whether all is well, perhaps for hours."""
        if self._ends():
            return
        if self._links.alive or not self._links.complete:
            self._links.look()
        else:
            self._links.rest()
        self._tidy()
        self._rest.close()  # a look before this work proves nothing after it

    def _ends(self) -> bool:
        if self._recorded.is_of_another or not self._links.is_there():
            self._end("no longer attached")
            return True
        return False

    def _tidy(self) -> None:
        self._links.close_buried()
        self._links.drop_undelivered()
        self._recorded.save_if_unsaved()

    @property
    def _is_at_rest(self) -> bool:
        """Whether all was well at the last whole look, and nothing has happened since."""
        if self._thread or self._access.ended or not (self._recorded.is_saved and self._mending.all_is_well):
            return False
        try:
            return self._links.at_rest and not self._recorded.is_of_another and self._rest.goes_on()
        except OSError:  # another thread has just closed a connection
            return False

    def hold(self) -> None:
        """From its return until `release`, no thread of ours touches the device. May take some seconds."""
        self._access.hold()
        self._remembering.stop()

    def release(self) -> None:
        if not self._access.give_back():
            return
        with contextlib.suppress(OSError):  # if we cannot read it now, the thread does later
            if not self._is_there():
                self._end("no longer attached")
        self.check()

    def cut(self) -> None:
        """Shuts down the connections, which are of no use any more: a send over them gets an error."""
        self._links.cut()

    def cut_off(self) -> None:
        """Cuts the connections, because the server is being shut down and fails each request while they last."""
        if not self._access.held and not self._access.ended and self._links.alive:
            uri = self._recorded.name
            self.log(
                f"{self.device.name}: {uri} is shutting down and refuses requests: cutting the connections", STOPPING
            )
            self._links.cut()
            self.check()

    def reconnect(
        self, target: Target | None, done: Done, any_content: bool = False, is_wanted: Callable[[], bool] = lambda: True
    ) -> None:
        """A planned hand-over to new connections, of `target` if one is named. `done` is called with the outcome.

        `is_wanted`: whether the command that asked is still there.
        """
        self._order(lambda: self._orders.reconnect(target, any_content, is_wanted), done)

    def resize(self, done: Done) -> None:
        """Asks the server for the size and applies it. `done` is called with the outcome."""
        self._order(self._orders.resize, done)

    def give_way(self) -> None:
        """Another watch has taken over."""
        self._end(None)

    def stop(self) -> None:
        """The monitor ends; the attachment stays, in a state that needs no monitor."""
        self._end(None)

    # -- called by the thread while it mends -----------------------------------------------------------------------

    def has_other_work(self) -> bool:
        """Work that comes first."""
        return bool(self._ordered) or self._access.held or self._access.ended

    def pause(
        self,
        seconds: float,
        until: Callable[[], bool] | None = None,
        every: float = math.inf,
        ended: Callable[[], bool] = lambda: False,
    ) -> bool:
        """False as soon as other work comes first; the check goes on after it.

        True after the time, or when `until` is true, which is asked after `every` seconds each, and at the end; or when
        `ended` is, which is asked after `wake`.
        """
        pause = Deadline(seconds)
        while True:
            left = pause.remaining()
            with self._changed:
                self._changed.wait_for(lambda: self.has_other_work() or ended(), timeout=min(left, every))
                if self.has_other_work():
                    self._check = True
                    return False
                if ended():
                    return True
            if (until and until()) or left <= every:
                return True

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _order(self, order: Callable[[], str], done: Done) -> None:
        with self._changed:
            if not self._access.ended:
                self._ordered.append((order, done))
                self._start()
                return
        done(_gone(self.device))

    def _start(self) -> None:
        self._changed.notify_all()
        if self._thread is None and not self._access.ended:
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
            self._end(f"watching it failed: {type(error).__name__}: {error}", TROUBLE)
            raise

    def _work(self) -> bool:
        """Does all the work there is. True if it must be called again, because of an error of this machine."""
        try:
            with netlink.Family() as self._links.family:
                while work := self._next_work():
                    work()
            return False
        except OSError as error:
            self.log(f"{self.device.name}: {error}; trying again", TROUBLE)
            with self._changed:
                self._check = True
                self._changed.wait_for(lambda: self._access.held or self._access.ended, timeout=_OWN_TROUBLE)
            return True

    def _next_work(self) -> Callable[[], None] | None:
        with self._changed:
            self._access.await_it()
            if self._access.ended or not (self._ordered or self._check):
                self._thread = None
                return None
            if self._ordered:
                order, done = self._ordered.pop(0)
                self._check = True  # afterwards: a connection that we did not hold may still be dead
                return lambda: self._obey(order, done)
            self._check = False
            return self._mending.mend

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

    def _end(self, why: str | None, event: Event = ENDED) -> None:
        with self._access.end() as first:
            if not first:
                return
            self._thread = None
            self._rest.close()
            self._links.close()
            self._connecting.close()
            self._remembering.stop()
            unheard, self._ordered = self._ordered, []
            # If the kernel has ended it, no command does that; the file came if we saw the connection die before.
            with contextlib.suppress(OSError):
                if self._links.is_free():
                    state.save_trouble(self.device, None)
        for _, done in unheard:
            done(_gone(self.device))
        if why:
            self.log(f"{self.device.name}: {why}", event)


def _gone(device: Device) -> NbdattachError:
    return KernelRefused(device.path, "no longer attached, or not by netlink", "see nbdattach status")
