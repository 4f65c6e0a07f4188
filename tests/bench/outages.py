# SPDX-License-Identifier: GPL-2.0-or-later
"""How soon devices are usable again after their server was away for long.

Nothing uses the devices during the outage. A read is made on each at its server's return, which is when the server
takes connections; that is seen some milliseconds late. For the CPU time of the monitor meanwhile see `watching`.
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
from servers import Server, free_port, nbdkit

COUNTS = (1, 16)
AWAY = (3.0, 40.0, 120.0, 600.0)
PATHS = ("TCP", "Unix")
# Outages of a minute and more are made once: they give a figure of each device.
ROUNDS, LONG_SECONDS = 2, 60.0
# The attachment waits longer than any outage here.
_ON_LOSS = ("--on-loss", "wait:1h")
BACK = "<= 1000"
MIB = 1 << 20


def measure(nbdattach: str, outages: tuple[float, ...] = AWAY) -> list[Row]:
    """All servers are away at the same time, and come back one after the other."""
    contender = netlink(nbdattach, *_ON_LOSS)
    subject = contender.name
    back: dict[tuple[str, float], Row] = {}
    with attached(contender) as places:
        for place in places:
            for away in outages:
                what = f"{place.what}, away {away:g} s: usable"
                back[place.what, away] = Row(what, "ms", subject, {subject: []}, {subject: BACK})
        for away in outages:
            for _ in range(ROUNDS if away < LONG_SECONDS else 1):
                for place in places:
                    place.lose()
                time.sleep(away)
                for place in places:
                    back[place.what, away].samples[subject].extend(place.come_back())
                time.sleep(REST_SECONDS)
    return list(back.values())


class Place:
    """A place at which a server can be started again, and the devices that are attached from it."""

    def __init__(self, folder: str, path: str, devices: list[Device]) -> None:
        self.what = f"{len(devices)} by {path}"
        self.devices = devices
        self._image = Path(folder, f"image of {self.what}")
        with self._image.open("wb") as file:
            file.truncate(16 * MIB)
        self._port = free_port()
        self._unix = f"{folder}/socket of {self.what}" if path == "Unix" else ""
        self._server: Server | None = None
        self._running = ExitStack()

    def serve(self) -> Server:
        if self._unix:
            Path(self._unix).unlink(missing_ok=True)  # a server that was killed leaves it behind
        self._server = self._running.enter_context(self._nbdkit())
        return self._server

    def _nbdkit(self) -> AbstractContextManager[Server]:
        arguments = ["--threads=1", "file", f"file={self._image}"]
        return nbdkit(*arguments, unix=self._unix) if self._unix else nbdkit(*arguments, port=self._port)

    def lose(self) -> None:
        assert self._server
        self._server.kill()

    def come_back(self) -> list[float]:
        """Milliseconds after the server's return until a device is usable, of each."""
        self.serve()
        with ThreadPoolExecutor(len(self.devices)) as pool:
            return [1000 * took for took in pool.map(seconds_for_a_new_read, [one.path for one in self.devices])]

    def close(self) -> None:
        self._running.close()


@contextmanager
def attached(contender: Contender) -> Iterator[list[Place]]:
    """A place for each number of devices on each path."""
    monitor_process.stop()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ExitStack() as ending:
        places: list[Place] = []
        first = 0
        for path in PATHS:
            for count in COUNTS:
                place = Place(folder, path, [Device(number) for number in range(first, first + count)])
                ending.callback(place.close)
                attach(contender, place.serve(), place.devices)
                places.append(place)
                first += count
        time.sleep(REST_SECONDS)
        yield places
        for place in places:
            detach(contender, place.devices)
