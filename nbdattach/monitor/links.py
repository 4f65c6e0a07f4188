# SPDX-License-Identifier: GPL-2.0-or-later
"""The connections of one device that we hold duplicates of, and how a new connection replaces a dead one.

Decisions that matter:
* We hold duplicates of the kernel's sockets, which show which connections are dead. A restarted monitor holds none, so
  it asks the kernel: the driver takes a scout (`kernel_socket.Scout`) if a connection is dead, and drops it otherwise.
* A dead connection stays dead until we hand over another one, so we seldom ask about it again: the kernel writes up to
  five lines into its log for each scout, and an outage may last for days.
* We check that the driver took a connection, because the answer to RECONFIGURE does not say so. If the device has a
  timeout, the driver sets it on the socket. If not, scouts show it: the driver takes one before, and drops others
  afterwards. Dropped scouts alone prove nothing: the driver also drops every socket until it has noticed that the old
  connection ended, and on a busy machine that may take a while. So we ask again until a request is done.
* Before the driver gets a new connection, TCP must have no data of a dead one that it could still send. If we cannot
  reset a connection, the driver resets it when it closes it: we make a scout replace each dead connection.
* We never write the queue limits here, and the size only while no request is under way. Newer kernels wait for all
  requests (for ever if the server is gone), and hold meanwhile the lock that every message for every device needs.
"""

from __future__ import annotations

import contextlib
import errno
import math
import time
from collections.abc import Callable

from nbdattach.attached.state import Record
from nbdattach.backends.by_netlink import RESEND_SECONDS, dead_conn_timeout
from nbdattach.connection.kernel_socket import Link, Scout
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.kernel import netlink
from nbdattach.kernel.sysfs import Kernel, identifier

# The driver notices a connection that was shut down almost at once; a busy machine may need this many seconds.
NOTICED = 10.0
# _LATE: how late the driver may notice that a scout ended. _DOUBT: how long we ask it, once a second, whether it uses a
# new connection.
_LATE = 0.1
_DOUBT = 10.0
# So often we ask a driver again about a connection of which we hold no duplicate: its answer was wrong if another
# process had a copy of the scout at that moment.
_ASK_AGAIN = 60.0
_POLL = 0.005
_QUICK_POLL = 0.0005
_FAILING_POLL = 0.1
# We wait at most this long for requests to come back, even if --io-timeout is longer, because new ones fail meanwhile.
# If nothing else helps (`await_failure`), we wait longer.
_PATIENCE = 30.0
# If nobody looked for so long, we do not know whether the server was stuck.
_UNSEEN = 10.0
# So long we keep a buried connection open. The driver gives up its own reference when it takes the next connection, and
# its thread that reads may not have noticed the end yet: it would read a socket that nobody has any more, and Linux 7.2
# has crashed so (nbd_reconnect_socket and recv_work in drivers/block/nbd.c). One that only its last close resets may
# not stay so long, because it would still deliver an old write: it gets the time that the thread takes by far.
_BURIED_SECONDS, _UNBURIED_SECONDS = 5.0, 0.2
# Bytes that a connection takes at once: all that there can be. How much the driver may have under way is in files that
# we must not read now (`kernel.unhurried`), and room that is not used costs nothing.
_ROOM = 1 << 30
# The kernel checks the age of requests at most this much later (blk_add_timer rounds to whole seconds).
_TIMER = 2.0


class Gone(Exception):
    """The attachment is no longer there."""


class Links:
    """For one caller at a time. Methods that send messages to the kernel need `family`, and raise `Gone` or OSError."""

    family: netlink.Family

    def __init__(self, device: Device, record: Record, links: list[Link]) -> None:
        self._device = device
        self._wanted = record.connections
        self._identifier = identifier(record.tag)
        self._links = links
        self._buried: list[tuple[float, Link]] = []  # since when
        self._kernel = Kernel(device)
        self._pid = record.kernel_pid
        # If not, the monitor before us ended and its duplicates were closed, perhaps in the middle of a change.
        self.complete = len(links) == self._wanted
        # NBD_ATTR_TIMEOUT, in seconds; 0 if the driver never gives up on a request. Several connections without
        # --io-timeout come from an older release, which did not require that option.
        self._timeout = math.ceil(record.io_timeout) or (RESEND_SECONDS if self._wanted > 1 else 0)
        # Whether the driver may hold a dead connection over which TCP still sends.
        self._unburied = not self.complete
        # How many dead ones the driver is known to have, if we do not hold all. They stay so until our next hand-over.
        self._dead = 0
        self._asked = 0.0  # when, in seconds of time.monotonic
        # Whether it is certain that the driver uses the connection that we gave it last.
        self._proven = True
        self._failing = record.on_loss == 0
        self._handed_over = (time.monotonic(), self._kernel.completed)
        self._doubted = time.monotonic()  # since when it is not certain, if so
        self._was_idle = True  # at one of our checks since the last hand-over
        # When we last saw that a request was done, or that none was under way; and when we last looked.
        self._moved = self._looked = time.monotonic()
        self._completed = self._kernel.completed

    # -- their state -----------------------------------------------------------------------------------------------

    def is_there(self) -> bool:
        return self._kernel.pid == self._pid and self._kernel.backend == self._identifier.strip()

    def is_free(self) -> bool:
        """Whether nothing is attached there."""
        return not self._kernel.pid

    def has_dead(self) -> bool:
        """Whether the driver counts a connection as dead, or will in a moment."""
        if not self.complete:
            if not self._dead or time.monotonic() - self._asked > _ASK_AGAIN:
                self._dead, self._asked = int(self._scout()), time.monotonic()
            return bool(self._dead)
        if len(self._links) < self._wanted or any(link.over for link in self._links):
            return True
        if self._proven or not self._scout():
            return False
        self.cut()  # the driver has dropped it
        return True

    @property
    def alive(self) -> bool:
        """Whether any connection that we hold is alive."""
        return any(not link.over for link in list(self._links))

    def any_lives(self) -> bool:
        """Whether the driver has a connection that is alive, also if we do not hold it."""
        return self.alive or not (self.complete or self._all_are_dead())

    def _all_are_dead(self) -> bool:
        if self._dead < self._wanted:
            self._dead = sum(self._are_dead(self._wanted))
        return self._dead == self._wanted

    @property
    def at_rest(self) -> bool:
        """Whether the driver has all its connections, certainly, and each that we hold is alive and not silent."""
        ours = [*self._links]
        complete = self.complete and self._proven and len(ours) == self._wanted and not self._buried
        return complete and not any(link.over or link.silent for link in ours)

    @property
    def answering(self) -> bool:
        """Whether any connection that we hold is alive and not silent."""
        return any(not link.over and not link.silent for link in self._links)

    @property
    def silence(self) -> float:
        """Seconds for which the most silent peer has owed an answer."""
        return max((link.silence for link in self._links), default=0.0)

    @property
    def silent(self) -> list[Link]:
        return [link for link in self._links if link.silent]

    @property
    def round_trip(self) -> float | None:
        """Seconds, None if we hold no connection."""
        return max((link.round_trip or 0.0 for link in self._links), default=None)

    def is_proven(self) -> bool:
        """Whether it is certain that the driver uses the last connection: if a request was done since.

        If the driver has no request under way, it is also certain after `_DOUBT` seconds in which it took no scout.
        """
        if self._has_served() or (not self._kernel.pending and time.monotonic() - self._doubted > _DOUBT):
            self._proven = True
        return self._proven

    def doubt(self) -> None:
        """The driver noticed that a connection ended. If it was late, it may have dropped the next one we gave it."""
        if not self._timeout:
            self._proven, self._doubted = False, time.monotonic()

    def look(self) -> None:
        """To be called once a second. If the driver has no requests, that does not mean that the server is stuck."""
        unseen = time.monotonic() - self._looked
        self._looked += unseen
        if unseen > _UNSEEN:  # a command held the device, perhaps
            self._moved += unseen
        idle, completed = not self._kernel.pending, self._kernel.completed
        self._was_idle = self._was_idle or idle
        if idle or completed != self._completed:
            self._completed = completed
            self._moved = time.monotonic()

    def rest(self) -> None:
        """In place of `look`, if no request can be stuck: none is under way, or no connection is alive."""
        self._looked = self._moved = time.monotonic()

    @property
    def resent_after(self) -> float:
        """At most so many seconds pass until a request that was sent over a dead connection is back at the driver."""
        return (self._timeout or RESEND_SECONDS) + _TIMER

    @property
    def stuck(self) -> float:
        """Seconds for which no request was done although there were some; 0.0 if that is no sign of trouble.

        With several connections, the driver has tried a request over each of them in that time. A connection without a
        request owes no answer, so it does not look silent.
        """
        self.look()
        seconds = time.monotonic() - self._moved
        return seconds if self._wanted > 1 and seconds > self._wanted * self.resent_after else 0.0

    @property
    def since_hand_over(self) -> float:
        """Seconds."""
        return time.monotonic() - self._handed_over[0]

    def has_served_nothing(self, seconds: float) -> bool:
        """Whether we know of no request that was done since the last hand-over.

        If the driver was idle at some moment, this counts only for `seconds` after the hand-over.
        """
        recent = self.since_hand_over < seconds
        waits = not self._was_idle and self._handed_over[1] == self._kernel.completed
        return not self._has_served() and (recent or waits)

    def _has_served(self) -> bool:
        """Whether we know of a request that was done since the last hand-over began.

        The kernel counts a failed request as done, too, so this is False while requests fail.
        """
        return not self._failing and self._handed_over[1] != self._kernel.completed

    def await_quiet(self, seconds: float) -> bool:
        """Waits until no request is under way; False if one still is after `seconds`."""
        quiet = Deadline(seconds)
        while self._kernel.pending:
            if not quiet.sleep(_QUICK_POLL):
                return False
        return True

    # -- changes of them -------------------------------------------------------------------------------------------

    def cut(self) -> None:
        for link in list(self._links):
            link.cut()

    def close(self) -> None:
        for link in self._links:
            link.close()
        self.close_buried(0.0)

    def close_buried(self, seconds: float = _BURIED_SECONDS) -> None:
        """Closes our duplicates of connections that were buried so long ago."""
        while self._buried and time.monotonic() - self._buried[0][0] >= seconds:
            self._buried.pop(0)[1].close()

    def _close_unburied(self) -> None:
        """Resets, by their last close, the connections that TCP still sends over; the driver has closed its own end."""
        if self._unburied and self._buried:
            time.sleep(max(0.0, self._buried[-1][0] + _UNBURIED_SECONDS - time.monotonic()))
            self.close_buried(0.0)

    def drop_undelivered(self) -> None:
        """Drops data that TCP has not delivered on dead connections, because the driver sends it again over another."""
        if self.alive:
            for link in list(self._links):
                if link.over:
                    link.drop_undelivered()

    def bury_dead(self, deadline: Deadline) -> None:
        """Returns when no data sent over dead connections can still reach the server; `hand_over` does the rest."""
        for link in [link for link in self._links if link.over]:
            self._unburied = not link.bury(deadline) or self._unburied
            self._links.remove(link)
            self._buried.append((time.monotonic(), link))

    def hand_over(self, link: Link, waiting: Deadline) -> bool:
        """Gives the driver the connection in place of a dead one; returns whether it took it before the deadline."""
        resent_after = self._timeout if self._wanted > 1 else 0
        link.get_ready(_ROOM, resent_after)
        before = self._kernel.completed  # read now: waiting requests are done while we check that the driver took it
        if not self.alive:
            self._moved = time.monotonic()  # without a connection, no request was stuck in one
        try:
            if not self._is_taken(link, waiting):
                return False
        except OSError:
            link.cut()  # the driver may have taken it, and we would not know
            self._unburied = True
            raise
        self._links.append(link)
        self._dead = 0
        self._proven = bool(self._timeout)
        self._doubted = time.monotonic()
        self._handed_over = (self._doubted, before)
        self._was_idle = False
        return True

    def _is_taken(self, link: Link, waiting: Deadline) -> bool:
        late = _POLL
        while not self._take(link, late):
            late = min(2 * late, _LATE)
            if link.over or not waiting.sleep(_POLL):
                return False
        return True

    def settle(self, on_loss: float | None) -> None:
        """Sets how long the driver waits for a lost server by itself, in case no monitor runs then."""
        self.complete = len(self._links) == self._wanted
        self._unburied = self._unburied and not self.complete
        self.be_patient(on_loss)

    def be_patient(self, on_loss: float | None) -> None:
        """If requests failed, they wait for a connection again."""
        patience = math.inf if on_loss is None else on_loss
        # With one connection and no timeout, the message must not name one: the driver would set queue/io_timeout.
        self._reconfigure(dead_conn_timeout=dead_conn_timeout(patience), timeout=self._timeout or None)
        if self._failing:
            self._handed_over = (self._handed_over[0], self._kernel.completed)  # requests before may have failed
        self._failing = on_loss == 0

    def fail_requests(self) -> None:
        """Fails requests that wait for a connection or for an answer. New requests fail at once."""
        self.are_failing()
        self.cut()
        self._reconfigure(dead_conn_timeout=0)
        self._scout()  # wakes the requests that wait, so that they fail

    def await_failure(self, go_on: Callable[[], bool], all_of_them: bool) -> bool:
        """Waits until no request is under way, or all are back at the driver. False if `go_on` has ended that.

        If we handed over a connection sooner, the driver would send them again over it. So without `all_of_them`, those
        of a device with a long --io-timeout may have to wait for another connection.
        """
        goes_on = True
        patience = Deadline(self.resent_after if all_of_them else min(_PATIENCE, self.resent_after))
        while self._kernel.pending and (goes_on := go_on()) and patience.sleep(_FAILING_POLL):
            pass
        return goes_on

    def are_failing(self) -> None:
        """Requests fail: from now on, a request that is done does not prove that a server answers."""
        self._failing = True

    def set_size(self, size: int) -> None:
        """In bytes. Only while no request is under way."""
        self._reconfigure(size=size)

    # -- messages to the kernel ------------------------------------------------------------------------------------

    def _scout(self) -> bool:
        """Asks the driver whether a connection is dead: it takes a scout only then.

        Requests that wait for a connection wake up, find the scout dead, and wait again.
        """
        with Scout() as scout:
            self._reconfigure(sockets=[scout.fileno()])
            return scout.was_taken()

    def _are_dead(self, count: int) -> list[bool]:
        """Offers the driver so many scouts at once: it takes one for each connection that is dead."""
        with contextlib.ExitStack() as stack:
            scouts = [stack.enter_context(Scout()) for _ in range(count)]
            self._reconfigure(sockets=[scout.fileno() for scout in scouts])
            return [scout.was_taken() for scout in scouts]

    def _take(self, link: Link, late: float) -> bool:
        """Whether the driver took it. Until it has noticed that the old connection ended, it silently drops any other.

        `late` is how many seconds it gets to notice that a scout ended.
        """
        if self._timeout:
            if self._unburied and not self._close_dead():
                return False
            self._reconfigure(sockets=[link.fileno()])
            taken = link.limited
            link.unlimited()
            return taken
        # There is one connection only. If the driver takes a scout, the old connection is dead. After that, if it drops
        # a scout, it has taken the new connection.
        if not self._scout():
            return False
        self._close_unburied()
        time.sleep(late)
        self._reconfigure(sockets=[link.fileno()])
        if self._scout():
            return False
        # If the driver is late to notice the end of the first scout, it dropped both later sockets, and notices it now.
        time.sleep(_LATE)
        return not self._scout()

    def _close_dead(self) -> bool:
        """Whether the driver has closed all dead connections: it has if it took a scout in place of each."""
        taken = self._are_dead(self._wanted - sum(not link.over for link in self._links))
        # Of those that we do not hold, some may be alive.
        closed = all(taken) if self.complete else any(taken)
        if closed:
            self._close_unburied()
        self._unburied = not (closed and self.complete)
        return closed

    def _reconfigure(
        self,
        sockets: list[int] | None = None,
        size: int | None = None,
        timeout: int | None = None,
        dead_conn_timeout: int | None = None,
    ) -> None:
        try:
            self.family.reconfigure(
                self._device.index,
                self._identifier,
                sockets=sockets or (),
                size=size,
                timeout=timeout,
                dead_conn_timeout=dead_conn_timeout,
            )
        except OSError as error:
            if error.errno == errno.EINVAL:  # another program has ended it, though the device is still in use
                raise Gone from error
            raise
