# SPDX-License-Identifier: GPL-2.0-or-later
"""One attachment with all that it meets: two servers, the driver, a monitor that may be killed; in one thread, on a
clock of its own. Connections are real sockets, so the kernel decides which have ended, and which data is unread.

`model_driver.Wrong` is raised at once when something happens that must never happen:
* the driver takes a connection while one of its earlier ones can still bring requests to a living server;
* it is told a size while a request is in flight, or a timeout for requests of a single connection;
* a connection ends although its server lives and answers, and no order says so;
* a request fails before --on-loss has passed, or waits for a connection long after that;
* the device is connected to the server before the move, once it has been at the new one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import math
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest import mock

from model_driver import MIB, ON_LOSS, Driver, Wrong, has_ended

from nbdattach import deadline
from nbdattach.attached import state
from nbdattach.attached.state import Record
from nbdattach.connection.client import Connection
from nbdattach.connection.kernel_socket import Link
from nbdattach.connection.probe import Answer
from nbdattach.device import Device
from nbdattach.errors import NbdattachError, NoConnection
from nbdattach.kernel import netlink, settings, sysfs
from nbdattach.monitor import asking, connecting, links, mending
from nbdattach.monitor.asking import Asking
from nbdattach.monitor.links import Links
from nbdattach.monitor.recorded import Recorded
from nbdattach.monitor.remembering import Remembering
from nbdattach.monitor.watch import Watch
from nbdattach.protocol.export import Export
from nbdattach.protocol.target import Target, parse_target

NBD0 = Device(0)
# A server at one place, and one whose name may have another address at any time.
HOME, AWAY = "nbd+unix:///disk?socket=/run/db1", "nbd://db2/disk"
# No step of a monitor or a command takes longer than this.
_LONGEST = 600.0
# A task that sleeps again and again is woken ever later, as on a busy machine, so that long waits take few steps here:
# its K-th sleep lasts at least K times the first, up to the second. In seconds.
_TIRED, _ASLEEP = 0.0005, 0.05
# Seconds of a pause that count as one more.
_ONE_PAUSE = 6.0
# Seconds from one to the next. The monitor looks each second, but that takes more of the real time.
_REQUESTS, _LOOKS = 3.0, 3.0


class Killed(BaseException):
    """Kills the monitor, like signal 9."""


class Clock:
    """Replaces the module time; while a task sleeps, the world goes on."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.now = 1000.0
        self.limit = math.inf
        self._in_a_row = 0

    def monotonic(self) -> float:
        return self.now

    def begin(self, longest: float) -> None:
        """A task begins, which takes no longer than that."""
        self.limit = self.now + longest
        self._in_a_row = 0

    def sleep(self, seconds: float) -> None:
        self._world.go_on()
        self._in_a_row += 1
        self.now += max(seconds, min(_TIRED * self._in_a_row, _ASLEEP))
        if self.now > self.limit:
            raise Wrong("somebody waits for ever")
        self._world.go_on()


@dataclasses.dataclass(eq=False)
class Accepted:
    """A connection at its server's end."""

    sock: socket.socket
    client: int  # the inode of the other end
    numbers: list[int] = dataclasses.field(default_factory=list)  # of requests that it has read and not answered
    taken: bool = False  # the driver uses it
    may_end: bool = False  # the server has been silent, or an order says so

    def read(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.sock.recv(8, socket.MSG_DONTWAIT):
                self.numbers.append(int.from_bytes(data, "big"))


class Server:
    """`slow` reads nothing for a while, as if busy with a long write; `silent_since` is when its link was cut.

    If it does not listen, it still serves its connections, as the children of a server do that has ended.
    """

    def __init__(self) -> None:
        self.lives = self.listens = True
        self.slow, self.silent_since = False, math.inf
        self.size = MIB
        self.accepted: list[Accepted] = []

    def accept(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.accepted.append(Accepted(ours, os.fstat(theirs.fileno()).st_ino))
        return theirs

    @property
    def silent(self) -> bool:
        return self.silent_since < math.inf

    @property
    def refuses(self) -> bool:
        return not (self.lives and self.listens)

    @property
    def reads(self) -> bool:
        return self.lives and not self.slow and not self.silent

    def read(self) -> None:
        for one in list(self.accepted) if self.reads else ():
            one.read()
            if has_ended(one.sock):
                self.accepted.remove(one)
                one.sock.close()

    def answer(self) -> None:
        """Answers all requests that it has read."""
        self.read()
        for one in self.accepted if self.reads else ():
            for number in one.numbers:
                with contextlib.suppress(OSError):
                    one.sock.send(number.to_bytes(8, "big"), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            one.numbers.clear()

    def come_back(self) -> None:
        self.lives = self.listens = True

    def end_one(self) -> None:
        """A connection, the oldest."""
        if self.accepted:
            self.accepted.pop(0).sock.close()

    def die(self) -> None:
        self.lives, self.slow, self.silent_since = False, False, math.inf
        for one in self.accepted:
            one.sock.close()
        self.accepted.clear()

    def be_silent(self, since: float) -> None:
        self.silent_since = min(self.silent_since, since)
        for one in self.accepted:
            one.may_end = True


class ModelProbe:
    """A bare connect."""

    def __init__(self, world: World, target: Target, _address: str | None) -> None:
        self._world = world
        self._server = world.servers[target.uri]

    def begin(self) -> ModelAsked:
        if self._server.silent:
            return ModelAsked(Answer(None), is_open=True)
        return ModelAsked(Answer(None, refused=True) if self._server.refuses else Answer(self._server.accept()))

    def answer(self, within: float) -> Answer:
        asked = self.begin()
        self._world.await_answers([asked], within)
        return asked.answer()


class ModelAsked:
    def __init__(self, answer: Answer, is_open: bool = False) -> None:
        self._answer, self.is_open = answer, is_open

    def answer(self) -> Answer:
        return self._answer


class ModelAsking(Asking):
    """Without a thread: `World.pause` asks when it is time."""

    def _start(self) -> None:
        pass

    @property
    def due(self) -> float:
        return min((one.due for one in self._questions), default=math.inf)

    def ask(self) -> None:
        self._ask(self._questions[:])


class ModelLink(Link):
    """Adds TCP's view of a cut link, which a pair of Unix sockets does not have."""

    def __init__(self, world: World, sock: socket.socket) -> None:
        super().__init__(sock)
        self._world = world
        self._server = world.server_of(sock.fileno())

    @property
    def silence(self) -> float:
        if self.over or self._server is None or not self._server.silent:
            return 0.0
        return self._world.now - self._server.silent_since


class World(ExitStack):
    def __init__(self, connections: int, on_loss: float = ON_LOSS, io_timeout: float | None = None) -> None:
        super().__init__()
        self._folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        (self._folder / "sys/block/nbd0").mkdir(parents=True)
        self._shown: dict[str, str] = {}
        self.clock = Clock(self)
        self.servers = {HOME: Server(), AWAY: Server()}
        if io_timeout is None:
            io_timeout = 0.0 if connections == 1 else 3.0
        self.driver = Driver(self, self._show, on_loss, io_timeout or 3.0, connections > 1 or bool(io_timeout))
        self.kills_in = math.inf  # events before the monitor is killed
        self.quick = False  # servers answer all the time, also while the monitor hands over
        self.busy = False  # each few seconds at most, a request follows one that has come to its end
        self.submitted = 0
        self._next_request = -math.inf
        self._pauses = 0  # pauses left in this step
        self._meanwhile: Callable[[], object] | None = None
        self._until_then = 0.0  # seconds of pauses
        self._asking = ModelAsking()
        self._heard = False  # the driver has announced that a connection is dead
        self.moved = False
        self.log: list[str] = []
        self._record = Record(
            "tag", HOME, "disk", "netlink", connections, "2026-01-02T03:04:05Z", 42,
            size=MIB, reconnect=True, on_loss=on_loss, io_timeout=io_timeout,
        )  # fmt: skip
        self._patch()
        sockets = [self.servers[HOME].accept() for _ in range(connections)]
        for one in self.servers[HOME].accepted:
            one.taken = True
        self.driver.attach([sock.dup() for sock in sockets])
        self._show()
        state.save(NBD0, self._record)
        self.watch = self._watched(self._record, [ModelLink(self, sock) for sock in sockets])

    def _patch(self) -> None:
        for module in (links, deadline, asking):
            self.enter_context(mock.patch.object(module, "time", self.clock))
        for owner, name, value in (
            (sysfs, "SYS", f"{self._folder}/sys"),
            (state, "RUN", f"{self._folder}/run"),
            (state, "write", self._killable(state.write)),
            (mending, "boot_time", self.clock.monotonic),
            (connecting, "boot_time", self.clock.monotonic),
            (connecting, "Link", functools.partial(ModelLink, self)),
            (connecting, "time", self.clock),
            (connecting, "Probe", functools.partial(ModelProbe, self)),
            (connecting, "FOR_ALL", self._asking),
            (asking, "await_answers", self.await_answers),
            (Links, "is_there", lambda _: True),
            (Recorded, "is_still_there", True),
            (Recorded, "is_of_another", False),
            (Watch, "check", lambda _: None),
            (Remembering, "tick", lambda _: None),
            (Remembering, "look_now", lambda _: None),
            (Watch, "pause", self._paused),
            (mending, "random", SimpleNamespace(random=lambda: 0.5)),
            (settings, "differences", lambda *_: []),
        ):
            self.enter_context(mock.patch.object(owner, name, value))

    # -- orders to the driver ------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.clock.now

    @property
    def silent(self) -> bool:
        return any(server.silent for server in self.servers.values())

    def happens(self) -> None:
        self.kills_in -= 1
        if self.kills_in < 0:
            self.kills_in = math.inf
            raise Killed

    def _killable(self, write: Callable[..., None]) -> Callable[..., None]:
        def before(*arguments: object) -> None:
            self.happens()
            write(*arguments)

        return before

    def announce(self) -> None:
        self._heard = True

    def taken(self, number: int) -> bool:
        """Of a socket that is not a scout's: one of the driver's earlier ones must have ended."""
        server, fresh = self._accepted(number)
        if fresh is None:
            return False
        old = [
            one for other in self.servers.values() for one in other.accepted if one.taken and not has_ended(one.sock)
        ]
        if len(old) >= len(self.driver.slots):
            raise Wrong("a second connection to a living server")
        if self.moved and server is self.servers[HOME]:
            raise Wrong("back to the server before the move")
        self.moved = self.moved or server is self.servers[AWAY]
        fresh.taken = True
        return True

    def _accepted(self, number: int) -> tuple[Server | None, Accepted | None]:
        inode = os.fstat(number).st_ino
        pairs = [(server, one) for server in self.servers.values() for one in server.accepted if one.client == inode]
        return pairs[0] if pairs else (None, None)

    def server_of(self, number: int) -> Server | None:
        return self._accepted(number)[0]

    # -- events ----------------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        request = self.driver.request
        overdue = request and len(self.driver.slots) > 1 and self.now > request.began + self._record.io_timeout
        for server in self.servers.values():
            for one in server.accepted if overdue else ():
                one.may_end = True  # the kernel's driver would end it
            if self.quick:
                server.answer()
            else:
                server.read()
        self.driver.look()
        if self.busy and not self.driver.request and self.now >= self._next_request:
            self.submit()
            self.driver.look()

    def submit(self, flush: bool = False) -> None:
        self.submitted += 1
        self._next_request = self.now + _REQUESTS
        self.driver.submit(self.submitted, flush)

    def all_is_well(self) -> None:
        """From now on."""
        self.busy = False
        self.kills_in, self._meanwhile = math.inf, None
        self.driver.late = 0.0
        for server in self.servers.values():
            server.come_back()
            server.slow, server.silent_since = False, math.inf
            server.size = self.watch._recorded.record.new_size or self.watch._recorded.record.size

    def check(self) -> None:
        """No connection has ended without a reason. To be called before the servers notice an end."""
        for server in self.servers.values():
            for one in server.accepted:
                if one.taken and not one.may_end and has_ended(one.sock):
                    raise Wrong("a connection to a living server was ended")

    def _show(self) -> None:
        """In /sys."""
        driver = self.driver
        completed = len(driver.done) + len(driver.failed)
        self._write("stat", f"{completed} 0 0 0 0 0 0 0 {int(driver.request is not None)} 0 0\n")
        self._write("inflight", f"0 {driver.in_flight}\n")
        self._write("size", f"{driver.size // 512}\n")

    def _write(self, name: str, text: str) -> None:
        """Only if it is another one, because it happens often."""
        if self._shown.get(name) != text:
            self._shown[name] = text
            (self._folder / "sys/block/nbd0" / name).write_text(text)

    # -- the monitor -----------------------------------------------------------------------------------------------

    def _watched(self, record: Record, held: list[Link]) -> Watch:
        made = Watch(NBD0, record, held, lambda line, *_: self.log.append(line))
        made._links.family = cast(netlink.Family, self.driver)
        made._connecting._carrier.dial = self._dial  # type: ignore[method-assign,assignment]
        made._orders._replace_all = self._anew(made._orders._replace_all)  # type: ignore[method-assign,assignment]
        return made

    def _anew(self, replace_all: Callable[[list[Connection]], None]) -> Callable[[list[Connection]], None]:
        """An outage that follows an ordered hand-over is another one."""

        def replaced(fresh: list[Connection]) -> None:
            try:
                replace_all(fresh)
            except NbdattachError:
                self.driver.begin_anew()
                raise
            self.driver.begin_anew()

        return replaced

    def _dial(
        self,
        target: Target,
        _dead_peer: float,
        within: float,
        *_: object,
        ready: socket.socket | None = None,
        **__: object,
    ) -> Connection:
        server = self.servers[target.uri]
        if ready and (server.silent or has_ended(ready)):
            ready.close()
        if server.silent:
            self.clock.sleep(within)
            raise NoConnection(target.uri, "no answer", "")
        if (ready.fileno() < 0) if ready else server.refuses:
            raise NoConnection(target.uri, "connection refused", "") from ConnectionRefusedError(errno.ECONNREFUSED, "")
        sock = ready or server.accept()
        stream = SimpleNamespace(sock=sock, run=lambda _: None, close=sock.close)
        export = Export("disk", server.size, 1, "newstyle-fixed")
        return cast(Connection, SimpleNamespace(stream=stream, export=export, relay=None, tls=None))

    def await_answers(self, asked: Sequence[ModelAsked], within: float) -> None:
        if any(one.is_open for one in asked):
            self.clock.sleep(within)

    def meanwhile(self, happens: Callable[[], object], after: float = 0.0) -> None:
        """In the monitor's next pause, or after so many seconds of its pauses."""
        self._meanwhile, self._until_then = happens, after

    def _paused(
        self,
        seconds: float,
        until: Callable[[], bool] | None = None,
        every: float = math.inf,
        ended: Callable[[], bool] = lambda: False,
    ) -> bool:
        """In place of `Watch.pause`. After so many pauses in each step something else comes first: the next step."""
        self.clock.begin(_LONGEST)
        end = self.now + seconds
        self._pauses -= 1
        while not self.watch.has_other_work():
            left = end - self.now
            self._wait(min(left, every), ended)
            if self._pauses <= 0 or self.watch.has_other_work():
                break
            if ended() or (until and until()) or left <= every:
                return True
        return False

    def _wait(self, seconds: float, ended: Callable[[], bool]) -> None:
        """Until then, the other threads of the monitor go on; a long time is several pauses."""
        end, next_pause, next_look = self.now + seconds, self.now + _ONE_PAUSE, self.now + _LOOKS
        while True:
            self._pass(max(0.0, min(end, self._asking.due, next_look) - self.now))
            if self._asking.due <= self.now:
                self._asking.ask()
            if self.now >= next_look:
                next_look = self.now + _LOOKS
                self._look_beside()
            if self.now >= next_pause:
                next_pause = self.now + _ONE_PAUSE
                self._pauses -= 1
            if self.now >= end or ended() or self._pauses <= 0 or self.watch.has_other_work():
                return

    def _pass(self, seconds: float) -> None:
        if self._meanwhile and self._until_then <= seconds:
            self.clock.sleep(self._until_then)
            seconds -= self._until_then
            happens, self._meanwhile = self._meanwhile, None
            happens()
            self.go_on()
        self._until_then -= seconds
        self.clock.sleep(seconds)

    def _look_beside(self) -> None:
        """The monitor's work beside a thread that pauses."""
        self._hear()
        self.driver.monitor_looks()
        self.driver.see_that_nothing_waits_for_ever()
        self.watch._thread = threading.current_thread()
        self.watch.tick()
        self.watch._thread = None

    def _hear(self) -> None:
        if self._heard:
            self._heard = False
            self.watch.hear()

    def step(self, pauses: int = 2) -> None:
        """The monitor's work when the kernel has told it of something, or its second has passed."""

        def once() -> None:
            self._pauses = pauses
            self._hear()
            self.driver.monitor_looks()
            self.watch.tick()
            self.watch._mending.mend()

        self.act(once)
        self.driver.see_that_nothing_waits_for_ever()

    def order(self, target: str | None, size: bool = False) -> bool:
        """Whether an order to hand over, or to take the server's size, was obeyed."""
        for server in self.servers.values():
            for one in server.accepted:
                one.may_end = True

        def obey() -> None:
            if size:
                self.watch._orders.resize()
            else:
                self.watch._orders.reconnect(target and parse_target(target))  # type: ignore[arg-type]

        began = self.now
        obeyed = self.act(obey)
        self.driver.unseen += self.now - began
        return obeyed

    def act(self, what) -> bool:  # type: ignore[no-untyped-def]
        """Whether it came to its end. A monitor that is killed meanwhile is followed by another."""
        self.clock.begin(_LONGEST)
        try:
            what()
        except NbdattachError:
            return False
        except Killed:
            self.monitor_dies()
            return False
        finally:
            self.clock.limit = math.inf
            self.check()
            self.go_on()
        return True

    def monitor_dies(self) -> None:
        """Signal 9; another one begins with the records."""
        self.kills_in = math.inf
        self.driver.watched_since = self.now
        self.watch._links.close()
        self.watch._connecting.close()
        record = Record(**json.loads(Path(state.path(NBD0)).read_text()))
        self.watch = self._watched(record, [])

    def __exit__(self, *details: object) -> None:
        self.watch._links.close()
        for slot in self.driver.slots:
            slot.sock.close()
        for server in self.servers.values():
            server.die()
        super().__exit__(*details)  # type: ignore[arg-type]
