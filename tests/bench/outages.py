# SPDX-License-Identifier: GPL-2.0-or-later
"""How soon devices are usable again after their server was away for long; and the CPU time of the monitor meanwhile.

Nothing uses the devices during the outage. A read is made on each at the server's return, which is when the server
takes connections; that is seen some milliseconds late.

User-mode Linux charges a whole tick, 10 ms, to the process that a tick meets. The monitor's timers end with ticks, so
its CPU time there may be far too large in an outage; the kernels of QEMU count it by the clock.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import monitor_process
from attached import REST_SECONDS, Device
from contenders import Contender, netlink
from crowd import attach, detach
from figures import Row
from load import seconds_for_a_new_read
from monitor_process import LEAST_DEVICES, LEAST_SECONDS
from servers import Server, free_port, nbdkit

COUNTS = (1, 16)
AWAY = (3.0, 40.0)
PATHS = ("TCP", "Unix")
MOST_ROUNDS = 2
# The attachment waits longer than any outage here.
_ON_LOSS = ("--on-loss", "wait:1h")
BACK, CPU = "<= 1000", "<= 0.15"
MIB = 1 << 20


def measure(nbdattach: str, rounds: int, outages: tuple[float, ...] = AWAY) -> list[Row]:
    contender = netlink(nbdattach, *_ON_LOSS)
    subject = contender.name
    kinds = [(path, count, away) for path in PATHS for count in COUNTS for away in outages]
    back: dict[tuple[str, int, float], Row] = {}
    used: dict[tuple[str, int, float], Row] = {}
    for path, count, away in kinds:
        what = f"{count} by {path}, away {away:g} s"
        back[path, count, away] = Row(f"{what}: usable", "ms", subject, {subject: []}, {subject: BACK})
        if count >= LEAST_DEVICES and away >= LEAST_SECONDS:
            what = f"{what}: CPU a second"
            used[path, count, away] = Row(what, "ms", subject, {subject: []}, {subject: CPU})
    for _ in range(rounds):
        for path in PATHS:
            for count in COUNTS:
                with attached(contender, path, count) as place:
                    for away in outages:
                        kind = (path, count, away)
                        worst, cpu = place.one_outage(away)
                        back[kind].samples[subject].append(worst)
                        if kind in used:
                            used[kind].samples[subject].append(cpu)
    return [row for kind in kinds for row in (back[kind], used.get(kind)) if row]


class Place:
    """A place at which a server can be started again, and the devices that are attached from it."""

    def __init__(self, folder: str, path: str, count: int) -> None:
        self._image = Path(folder, "image")
        with self._image.open("wb") as file:
            file.truncate(16 * MIB)
        self._port = free_port()
        self._unix = f"{folder}/socket" if path == "Unix" else ""
        self._server: Server | None = None
        self.devices = [Device(number) for number in range(count)]
        self._running = ExitStack()

    def serve(self) -> Server:
        if self._unix:
            Path(self._unix).unlink(missing_ok=True)  # a server that was killed leaves it behind
        self._server = self._running.enter_context(self._nbdkit())
        return self._server

    def _nbdkit(self) -> AbstractContextManager[Server]:
        arguments = ["--threads=1", "file", f"file={self._image}"]
        return nbdkit(*arguments, unix=self._unix) if self._unix else nbdkit(*arguments, port=self._port)

    def one_outage(self, away: float) -> tuple[float, float]:
        """Milliseconds after the server's return until all devices are usable; CPU ms a second and device meanwhile."""
        monitor = monitor_process.pid()
        assert self._server
        self._server.kill()
        gone = time.monotonic()
        before = monitor_process.cpu_milliseconds(monitor)
        time.sleep(away)
        cpu = (monitor_process.cpu_milliseconds(monitor) - before) / (time.monotonic() - gone) / len(self.devices)
        self.serve()
        with ThreadPoolExecutor(len(self.devices)) as pool:
            worst = max(pool.map(seconds_for_a_new_read, [device.path for device in self.devices]))
        time.sleep(REST_SECONDS)
        return worst * 1000, cpu

    def close(self) -> None:
        self._running.close()


@contextmanager
def attached(contender: Contender, path: str, count: int) -> Iterator[Place]:
    monitor_process.stop()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        place = Place(folder, path, count)
        try:
            attach(contender, place.serve(), place.devices)
            time.sleep(REST_SECONDS)
            yield place
            detach(contender, place.devices)
        finally:
            place.close()
