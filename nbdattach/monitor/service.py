# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor: one process per host, which reconnects attachments that lost a connection.

It keeps its state in memory and may be killed at any time: when it is started again, it takes over every attachment and
finds the connections that died meanwhile. A `Watch` does the work on each attachment.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from nbdattach.attached import state
from nbdattach.connection.kernel_socket import Link
from nbdattach.connection.stream import prepare, warm_up
from nbdattach.deadline import Deadline
from nbdattach.device import Device, parse_device
from nbdattach.error_facts import SAME_VERSION
from nbdattach.errors import KernelRefused, NbdattachError, NotAttached
from nbdattach.host import bare_process, procfs, storage_daemon, systemd
from nbdattach.host.log import ERR, Write, kernel_log, of_service
from nbdattach.host.spawn import own_package
from nbdattach.kernel import driver, sysfs
from nbdattach.kernel.dead_links import DeadLinks, subscribed
from nbdattach.kernel.driver_log import DriverLog
from nbdattach.monitor import control, daemon
from nbdattach.monitor.control import Caller, Door, Request
from nbdattach.monitor.events import NOTE, TROUBLE, WATCHING, Log, log_to
from nbdattach.monitor.real_root import RealRoot
from nbdattach.monitor.watch import Watch
from nbdattach.protocol.target import target_of
from nbdattach.relay.dialer import Relay

_TICK = 1.0
# Of Python; the command `nbdattach monitor` comes with a larger one (`__main__`), which is for commands that end soon.
_GARBAGE = (700, 10, 10)
# Seconds for which commands and the kernel wait to be heard.
_PATIENCE = 0.2
# In case an announcement of the kernel was lost.
_TICKS_BETWEEN_CHECKS = 30
_LOADING = 10.0
_BREATH = 0.2
_PREPARATION = 5.0
# Seconds for the initramfs's interim monitor to exit.
_RELIEF = 15.0
# Bytes; nothing here recurses.
_STACK = 256 << 10


def run(write: Write, ready: Callable[[], None] = lambda: None, root: RealRoot | None = None) -> None:
    """Runs until SIGTERM. Calls `ready` when it answers commands. Raises `NbdattachError`, as for a second monitor.

    With `root` this is the initramfs's interim monitor; it exits when the real system's monitor takes over.
    """
    driver.ensure_loaded()
    if not procfs.is_root():
        raise KernelRefused("monitor", "no permission", "run it as root: try sudo")
    warm_up()
    log = log_to(write)
    _prepare(log)
    with _one_place():
        Monitor(log, root).run(ready)


def _prepare(log: Log) -> None:
    """Reads now all files needed later if the root file system is on a device: they are unreadable during an outage.

    The interim monitor may still run meanwhile. Waits for an answer of name servers.
    """
    for device in sysfs.devices():
        record = state.load(device)
        if record and record.root:
            try:
                for uri in (record.uri, *record.others):
                    prepare(target_of(uri, record.trust), Deadline(_PREPARATION))
            except NbdattachError as error:
                log(f"{device.name}: {error}", TROUBLE, {"NBDATTACH_DEVICE": device.path})
            procfs.stay_in_memory()


@contextlib.contextmanager
def _one_place() -> Iterator[None]:
    """Ensures that this is the only monitor of the host; asks an interim monitor to exit."""
    patience = Deadline(_RELIEF)
    asked = False
    while True:
        with state.monitor_lock() as alone:
            if alone:
                yield
                return
        if not asked:
            try:
                control.ask(Request("leave"), _RELIEF)
            except NbdattachError as error:
                there = NbdattachError("monitor", "already running on this host", "one monitor serves all devices")
                raise there from error
            asked = True
        if not patience.sleep(_BREATH):
            raise NbdattachError(
                "monitor", "the interim monitor of the initramfs does not exit", "see dmesg for its log"
            )


class Monitor:
    """Its main thread only listens to the kernel, commands and the clock."""

    def __init__(self, log: Log, root: RealRoot | None = None) -> None:
        self._log = log
        self._root = root
        self._watches: dict[Device, Watch] = {}
        self._mutex = threading.Lock()  # around that dictionary
        self._outdated = False
        self._due: deque[Watch] = deque()  # to be looked at in this tick
        self._told = -1  # number of watches last sent to systemd; only changes are sent, because it may log each

    def run(self, ready: Callable[[], None]) -> None:
        procfs.raise_descriptor_limit()
        procfs.survive()
        threading.stack_size(_STACK)
        woken = bare_process.end_signals()
        with contextlib.closing(Door()) as door:
            self._adopt()
            gc.freeze()
            gc.set_threshold(*_GARBAGE)
            ready()
            systemd.notify("READY=1")
            # The ids of the netlink family change each time the driver is loaded.
            while not self._listen(door, woken):
                self._log("monitor: the driver was reloaded", NOTE)
            systemd.notify("STOPPING=1")
        for watch in self._watches.values():
            watch.stop()

    def _listen(self, door: Door, woken: int) -> bool:
        """True if a signal ended it, False if the driver was loaded anew."""
        driver_now = sysfs.driver_instance()
        with contextlib.ExitStack() as end:
            dead_links = end.enter_context(contextlib.closing(_subscription()))
            self._check(None)  # a connection may have died before we heard of it
            told = self._driver_log()
            if told:
                end.enter_context(contextlib.closing(told))
            return self._listen_to(dead_links, told, door, woken, driver_now)

    def _driver_log(self) -> DriverLog | None:
        """None if we may not read it, as in a container; the monitor works without it."""
        try:
            return DriverLog()
        except OSError as error:
            self._log(f"monitor: {error}; cannot detect a server that refuses requests while it shuts down", NOTE)
            return None

    def _listen_to(
        self, dead_links: DeadLinks, told: DriverLog | None, door: Door, woken: int, driver_now: int
    ) -> bool:
        poll = select.poll()
        for one in (dead_links.fileno(), door.fileno(), woken):
            poll.register(one, select.POLLIN)
        if told:
            poll.register(told.fileno(), select.POLLIN)
        ticks, next_tick = 0, time.monotonic()
        while True:
            ready = {number for number, _ in poll.poll(0 if self._due else _TICK * 1000)}
            if woken in ready:
                return True
            with self._logged():
                if dead_links.fileno() in ready:
                    self._check(dead_links.read())
                if told and told.fileno() in ready:
                    self._cut_off(told.read())
                if door.fileno() in ready:
                    threading.Thread(target=self._serve, args=[door.accept()], daemon=True).start()
            if not self._due and time.monotonic() >= next_tick:
                next_tick = time.monotonic() + _TICK
                ticks += 1
                with self._logged():
                    if self._root:
                        self._root.follow()
                        self._adopt()  # while /sys was not visible for a moment, all attachments seemed to be gone
                    self._begin_tick()
                if sysfs.driver_instance() not in (0, driver_now):
                    return False
                if ticks % _TICKS_BETWEEN_CHECKS == 0:
                    with self._logged():
                        self._adopt()
                        self._suspect()
                        self._outlive()
            self._tick()

    @contextlib.contextmanager
    def _logged(self, thing: str = "monitor") -> Iterator[None]:
        """Logs errors: an error with one device must not end the watch over the others."""
        try:
            yield
        except Exception as error:  # no memory, no descriptors, no thread; a state file with impossible values
            about = {} if thing == "monitor" else {"NBDATTACH_DEVICE": f"/dev/{thing}"}
            self._log(f"{thing}: {type(error).__name__}: {error}", TROUBLE, about)
            time.sleep(_BREATH)

    def _check(self, indices: list[int] | None) -> None:
        """Checks the devices for which the kernel announced a dead connection; None for all."""
        for watch in self._all_watches():
            if indices is None or watch.device.index in indices:
                with self._logged(watch.device.name):
                    watch.hear()

    def _suspect(self) -> None:
        """As if the kernel had announced a dead connection of each device that is not at rest."""
        for watch in self._all_watches():
            with self._logged(watch.device.name):
                watch.suspect()

    def _all_watches(self) -> list[Watch]:
        with self._mutex:
            return list(self._watches.values())

    def _cut_off(self, indices: list[int]) -> None:
        """Cuts connections to servers that are being shut down, so that new requests wait for the server's return."""
        for watch in self._all_watches():
            if watch.device.index in indices:
                with self._logged(watch.device.name):
                    watch.cut_off()

    def _begin_tick(self) -> None:
        watches = self._all_watches()
        self._due.extend(watches)
        if len(watches) != self._told:
            self._told = len(watches)
            systemd.notify(f"STATUS=watching {self._told} device(s)")

    def _tick(self) -> None:
        """Looks at devices that are due. Not at all of a thousand: meanwhile nobody else would be heard."""
        patience = Deadline(_PATIENCE)
        while self._due and not patience.passed:
            watch = self._due.popleft()
            with self._logged(watch.device.name):
                if self._watches.get(watch.device) is watch and not watch.tick():
                    self._drop(watch.device, watch)

    def _drop(self, device: Device, watch: Watch) -> None:
        with self._mutex:
            if self._watches.get(device) is watch:
                del self._watches[device]
            self._outlive()

    def _outlive(self) -> None:
        """Asks not to be killed at shutdown while we watch a device.

        Not if files that we run from were deleted: while we keep them open, their file system cannot be made read-only,
        so it is better that we are killed.
        """
        outdated = procfs.runs_from_deleted_files()
        if outdated and not self._outdated and not self._root:
            self._log(
                "monitor: its program files were replaced; run: systemctl restart nbdattach-monitor.service", NOTE
            )
        self._outdated = outdated
        storage_daemon.outlive(bool(self._watches) and not outdated)

    def _adopt(self) -> None:
        """Watches attachments that want a monitor, but were made while none ran or were watched by one before us."""
        for device in sysfs.devices():
            with self._logged(device.name):
                record = None if device in self._watches else state.load(device)
                if record and record.reconnect and record.backend == "netlink":
                    self._watch(Watch(device, record, [], self._log), adopted=True)

    def _watch(self, watch: Watch, adopted: bool = False) -> None:
        """Replaces an older watch of the device. An `adopted` watch holds no connection, so it never replaces one."""
        device = watch.device
        with self._mutex:
            before = self._watches.get(device)
            if adopted and before:
                return
            self._watches[device] = watch
            self._outlive()
        if before:
            before.give_way()
        else:
            watch.log(f"{device.name}: watching {watch.target}", WATCHING)
        watch.check()

    # -- commands ------------------------------------------------------------------------------------------------------

    def _serve(self, caller: Caller) -> None:
        """Serves one command; each has its own thread."""
        with contextlib.closing(caller):
            try:
                request, descriptors = caller.read()
            except OSError:
                return
            relay = Relay.of(descriptors.pop(), request.relay) if request and request.relay and descriptors else None
            links = [Link.of(number) for number in descriptors]
            try:
                if request is None:
                    raise NbdattachError("monitor", "it cannot read the request", SAME_VERSION)
                self._carry_out(request, links, relay, caller)
            except NbdattachError as error:
                caller.reply(error)
            except Exception as error:  # the command gets an answer, and the log gets the error
                self._log(f"monitor: {request}: {type(error).__name__}: {error}", TROUBLE)
                caller.reply(NbdattachError("monitor", f"{type(error).__name__}: {error}", "see the monitor's log"))

    def _carry_out(self, request: Request, links: list[Link], relay: Relay | None, caller: Caller) -> None:
        if request.do == "ping":
            caller.reply(str(os.getpid()))
            return
        if request.do == "package":
            caller.reply(own_package())
            return
        if request.do == "leave" and self._root:
            caller.reply("leaving")
            os.kill(os.getpid(), signal.SIGTERM)
            return
        device = parse_device(request.device)
        if request.do == "watch":
            record = state.load(device)
            if record is None or record.backend != "netlink":
                raise NotAttached(device.path)
            self._watch(Watch(device, record, links, self._log, relay))
            caller.reply("watching")
            return
        with self._mutex:
            watch = self._watches.get(device)
        if watch is None:
            raise _not_watched(device)
        if request.do == "hold":
            watch.hold()
            try:
                caller.reply("held")
                if not caller.wait_until_gone():
                    watch.log(
                        f"{device.name}: process {caller.pid} is stopped; watching the device without waiting for it",
                        NOTE,
                    )
            finally:
                watch.release()
            return
        if request.do == "cut":
            watch.cut()
            caller.reply("cut")
            return
        done = threading.Event()

        def finish(outcome: str | NbdattachError) -> None:
            caller.reply(outcome)
            done.set()

        if request.do == "reconnect":
            watch.reconnect(request.named_target, finish, request.any_content, lambda: caller.is_there)
        elif request.do == "resize":
            watch.resize(finish)
        else:
            raise NbdattachError("monitor", "it does not know this request", SAME_VERSION)
        done.wait()


def _not_watched(device: Device) -> NbdattachError:
    record = state.load(device)
    if record is None:
        if sysfs.Kernel(device).attached:
            cause = "not attached by nbdattach, so its server is unknown"
            return KernelRefused(device.path, cause, "disconnect it, and connect")
        return NotAttached(device.path)
    if record.backend == "ioctl":
        return KernelRefused(
            device.path,
            "attached by the ioctl backend, whose connections the kernel cannot replace",
            "disconnect it, and connect with --backend netlink",
        )
    if record.reconnect:
        return KernelRefused(
            device.path, "the monitor no longer watches it", "see the monitor's log, then restart the monitor"
        )
    cause = "attached with --no-reconnect, so the monitor does not watch it"
    return KernelRefused(device.path, cause, "disconnect it, and connect without --no-reconnect")


def _subscription() -> DeadLinks:
    deadline = Deadline(_LOADING)
    while True:
        try:
            return subscribed()
        except OSError:  # /sys shows the module before it has registered its family
            if not deadline.sleep(0.1):
                raise


# -- its start ------------------------------------------------------------------------------------------------------


def main() -> None:
    """The monitor as a service: in the foreground, its log in the journal or on stderr."""
    write = of_service()
    try:
        run(write)
    except NbdattachError as error:
        write(str(error), ERR)
        sys.exit(error.exit_code)


def main_in_background() -> None:
    """The monitor as a daemon. This process ends when it is ready, or with the error on stderr and exit code 1."""
    said = daemon.start(lambda ready: run(kernel_log(), ready))
    if said:
        sys.stderr.write(f"{said}\n")
        sys.stderr.flush()
    os._exit(1 if said else 0)


def stand_in() -> str:
    """Starts the initramfs's interim monitor as a daemon; returns the error, or an empty text."""
    root = RealRoot()
    return daemon.start(lambda ready: run(kernel_log(), ready, root))
