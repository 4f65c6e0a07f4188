# SPDX-License-Identifier: GPL-2.0-or-later
"""All connections that the driver has of one device, as far as we hold them; and how one takes the place of another.

Decisions that matter:
* We hold duplicates of the kernel's sockets, which show what is dead. A monitor that was restarted holds none; it asks
  the kernel: a scout (`kernel_socket.Scout`) is taken where a connection is dead, and dropped where all live.
* That the kernel took a connection is seen, not believed: RECONFIGURE says nothing of it. Where the device has a
  timeout, the driver sets it on the socket; where it has none, a scout that is taken before and others that are dropped
  afterwards show it. The latter alone do not: the driver drops all while it has not seen the connection before end, and
  on a busy machine it may be late. So until a request is done, it is asked again.
* Before the driver gets a new connection, TCP has nothing left of a dead one that it could still send. What we cannot
  reset, the driver does when it closes it: a scout takes the place of each connection that is dead.
* The limits of the queue are never written here, and a size only while no request is under way: newer kernels wait for
  all of them, for ever when their server is gone, and hold the lock meanwhile that each message for each device needs.
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
# How late it may be to see a scout end; and how long, once a second, it is asked whether it uses a new connection.
_LATE = 0.1
_DOUBT = 10.0
_POLL = 0.005
_QUICK_POLL = 0.0005
_FAILING_POLL = 0.1
# For requests to come back, though --io-timeout is longer: what is new fails meanwhile.
_PATIENCE = 30.0
# The kernel looks at the age of requests so much later, at most (blk_add_timer rounds to whole seconds).
_TIMER = 2.0


class Gone(Exception):
    """The attachment is no longer there."""


class Links:
    """For one caller at a time. What speaks to the kernel needs `family`, and raises `Gone` or OSError."""

    family: netlink.Family

    def __init__(self, device: Device, record: Record, links: list[Link]) -> None:
        self._device = device
        self._wanted = record.connections
        self._identifier = identifier(record.tag)
        self._links = links
        self._kernel = Kernel(device)
        self._pid = record.kernel_pid
        # Else the monitor before us has taken its duplicates with it, perhaps in the middle of something.
        self.complete = len(links) == self._wanted
        # NBD_ATTR_TIMEOUT, in seconds; 0 where the driver never gives up on a request. Several connections without
        # --io-timeout are of a connect before that was asked for.
        self._timeout = math.ceil(record.io_timeout) or (RESEND_SECONDS if self._wanted > 1 else 0)
        # Whether the driver may hold a dead connection over which TCP still sends.
        self._unburied = not self.complete
        # Whether there is no doubt that the driver uses the connection that it was given last.
        self._proven = True
        self._failing = record.on_loss == 0
        self._handed_over = (time.monotonic(), self._kernel.completed)
        self._doubted = time.monotonic()  # since when there is doubt, where there is
        self._was_idle = True  # since the last hand-over, as far as somebody has looked
        # When a request was last known to be done, or none under way.
        self._moved, self._completed = time.monotonic(), self._kernel.completed

    # -- what they are like ----------------------------------------------------------------------------------------

    def is_there(self) -> bool:
        return self._kernel.by_netlink and self._kernel.pid == self._pid

    def has_dead(self) -> bool:
        """Whether the driver counts a connection as dead, or will in a moment."""
        if not self.complete:
            return self._scout()
        if not self._proven and self._scout():
            self.cut()  # the driver has dropped it
        return len(self._links) < self._wanted or any(link.over for link in self._links)

    @property
    def alive(self) -> bool:
        """Whether any of those that we hold lives."""
        return any(not link.over for link in list(self._links))

    @property
    def answering(self) -> bool:
        """Whether any of those lives, and is not silent."""
        return any(not link.over and not link.silent for link in self._links)

    @property
    def silence(self) -> float:
        """Seconds for which the most silent peer has owed an answer."""
        return max((link.silence for link in self._links), default=0.0)

    @property
    def silent(self) -> list[Link]:
        return [link for link in self._links if link.silent]

    def are_well(self) -> bool:
        """Whether none is dead or silent. Those that we do not hold cannot show that, and are not."""
        return self.complete and not self.silent and not self.has_dead()

    @property
    def round_trip(self) -> float | None:
        """Seconds, None where none is known."""
        return max((link.round_trip or 0.0 for link in self._links), default=None)

    def is_proven(self) -> bool:
        """A request that was done since, or a driver without any that has wanted no other for long, proves it."""
        if self._has_served() or (not self._kernel.pending and time.monotonic() - self._doubted > _DOUBT):
            self._proven = True
        return self._proven

    def doubt(self) -> None:
        """The driver has seen a connection end. It may have been so late that it dropped the one after that."""
        if not self._timeout:
            self._proven, self._doubted = False, time.monotonic()

    def look(self) -> None:
        """Once a second. A driver without requests is no sign of a server that does none."""
        idle, completed = not self._kernel.pending, self._kernel.completed
        self._was_idle = self._was_idle or idle
        if idle or completed != self._completed:
            self._completed = completed
            self.move()

    def move(self) -> None:
        """From now on it counts how long no request is done."""
        self._moved = time.monotonic()

    @property
    def resent_after(self) -> float:
        """Seconds until a request that was under way over a dead connection comes back to the driver, at most."""
        return (self._timeout or RESEND_SECONDS) + _TIMER

    @property
    def stuck(self) -> float:
        """Seconds for which no request was done although there were some; 0.0 where that says nothing.

        A request of one of several connections has been given to each of the others in that time. One that has no
        request owes no answer, so it does not look silent.
        """
        self.look()
        seconds = time.monotonic() - self._moved
        return seconds if self._wanted > 1 and seconds > self._wanted * self.resent_after else 0.0

    def has_served_nothing(self, seconds: float) -> bool:
        """Whether no request is known to be done since the last hand-over.

        If there was none for a moment, that says something only for so long after the hand-over.
        """
        recent = time.monotonic() - self._handed_over[0] < seconds
        waits = not self._failing and not self._was_idle  # where requests fail, none waits
        return not self._has_served() and (recent or waits)

    def _has_served(self) -> bool:
        """Whether a request is known to be done since the last hand-over began.

        One that failed counts as done, too, and where they may fail for that very reason it says nothing.
        """
        return not self._failing and self._handed_over[1] != self._kernel.completed

    def await_quiet(self, seconds: float) -> bool:
        """Until no request is under way; False where one still is after so long."""
        quiet = Deadline(seconds)
        while self._kernel.pending:
            if not quiet.sleep(_QUICK_POLL):
                return False
        return True

    # -- what is done to them --------------------------------------------------------------------------------------

    def cut(self) -> None:
        for link in list(self._links):
            link.cut()

    def close(self) -> None:
        for link in self._links:
            link.close()

    def drop_undelivered(self) -> None:
        """What TCP still has of those that are dead, where the driver sends the same over another one."""
        if self.alive:
            for link in self._links:
                if link.over:
                    link.drop_undelivered()

    def bury_dead(self, deadline: Deadline) -> None:
        """Returns when nothing that was sent over them can still come to the server; `hand_over` does the rest."""
        for link in [link for link in self._links if link.over]:
            self._unburied = not link.bury(deadline) or self._unburied
            self._links.remove(link)

    def hand_over(self, link: Link, waiting: Deadline) -> bool:
        """Gives the driver the connection in the place of a dead one; whether it took it before the deadline."""
        resent_after = self._timeout if self._wanted > 1 else 0
        link.get_ready(self._kernel.most_in_flight(self._kernel.max_sectors_kb), resent_after)
        before = self._kernel.completed  # what waits is done while we make sure that the driver took it
        if not self.alive:
            self.move()  # without a connection nothing was stuck in one
        try:
            if not self._is_taken(link, waiting):
                return False
        except OSError:
            link.cut()  # the driver may have it, and nobody would know
            self._unburied = True
            raise
        self._links.append(link)
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
        """The driver waits for a lost server by itself for so long, while no monitor is there to know better."""
        self.complete = len(self._links) == self._wanted
        self._unburied = self._unburied and not self.complete
        self.be_patient(on_loss)

    def be_patient(self, on_loss: float | None) -> None:
        """Requests wait for a connection again, where they failed."""
        patience = math.inf if on_loss is None else on_loss
        # With one connection and no timeout nothing may be said of it: the driver would set queue/io_timeout, too.
        self._reconfigure(dead_conn_timeout=dead_conn_timeout(patience), timeout=self._timeout or None)
        if self._failing:
            self._handed_over = (self._handed_over[0], self._kernel.completed)  # those before may have failed
        self._failing = on_loss == 0

    def fail_requests(self) -> None:
        """What waits for a connection fails, and what was sent and is not answered; what comes fails at once."""
        self.are_failing()
        self.cut()
        self._reconfigure(dead_conn_timeout=0)
        self._scout()  # so that what waits finds out

    def await_failure(self, go_on: Callable[[], bool]) -> None:
        """Until no request is under way, or all that were have come back to the driver; or `go_on` says no.

        A connection that came sooner would get them once more.
        """
        patience = Deadline(min(_PATIENCE, self.resent_after))
        while self._kernel.pending and go_on() and patience.sleep(_FAILING_POLL):
            pass

    def are_failing(self) -> None:
        """Requests fail: from here on one that is done is no sign of a server."""
        self._failing = True

    def set_size(self, size: int) -> None:
        """In bytes. Only while no request is under way."""
        self._reconfigure(size=size)

    # -- what the kernel is told -----------------------------------------------------------------------------------

    def _scout(self) -> bool:
        """Asks the driver. Requests that wait for a connection wake up, find this one dead, and wait again."""
        with Scout() as scout:
            self._reconfigure(sockets=[scout.fileno()])
            return scout.was_taken()

    def _take(self, link: Link, late: float) -> bool:
        """Whether the driver took it. While it has not seen the old connection end, it drops any other in silence.

        `late` is how many seconds it has to see a scout end.
        """
        if self._timeout:
            if self._unburied and not self._close_dead():
                return False
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

    def _close_dead(self) -> bool:
        """Whether the driver has closed all dead connections: whether it took a scout in the place of each."""
        dead = self._wanted - sum(not link.over for link in self._links)
        with contextlib.ExitStack() as stack:
            scouts = [stack.enter_context(Scout()) for _ in range(dead)]
            self._reconfigure(sockets=[scout.fileno() for scout in scouts])
            taken = [scout.was_taken() for scout in scouts]
        if not self.complete:  # not all are dead that we do not hold
            return any(taken)
        self._unburied = not all(taken)
        return not self._unburied

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
            if error.errno == errno.EINVAL:  # another program has ended it, though somebody still uses the device
                raise Gone from error
            raise
