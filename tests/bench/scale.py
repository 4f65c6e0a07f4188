# SPDX-License-Identifier: GPL-2.0-or-later
"""A host with few and with many devices: the cost of each device, and of a command beside so many."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import monitor_process
from attached import REST_SECONDS, Device, run, until
from contenders import netlink
from figures import Row
from monitor_process import LEAST_DEVICES
from servers import Server, nbdkit

from nbdattach.host import procfs

# From small to large. Lines of larger ones are compared with those of the second, which is past the start's cost.
COUNTS = (1, 16, 64, 256, 1024)
MOST_ROUNDS = 2
# More take minutes, and have their figures from the first round.
OFTEN = 64
# Of a measurement that is short, in each round.
REPEATS = 3
IDLE_SECONDS = 30.0
# The monitor looks once more at what was just attached or detached.
SETTLE_SECONDS = 5.0
# By the number of devices: for its commands beside one device, and for one that finds a device itself.
COMPARED = 64
A_LINE, A_COMMAND = "<= 1.5", "<= 1.3"
MEMORY, A_DEVICE = "<= 18", "<= 20"
OURS = "nbdattach"


class Figures:
    """Figures by measurement and number of devices, one a round or several."""

    def __init__(self) -> None:
        self._samples: dict[tuple[str, int], list[float]] = {}

    def add(self, what: str, count: int, figure: float) -> None:
        self._samples.setdefault((what, count), []).append(figure)

    def row(self, what: str, unit: str, count: int, aim: str = "") -> list[Row]:
        """Of `count` devices alone. Empty if that was not measured, as of too few."""
        own = self._samples.get((what, count))
        return [Row(f"{what}, {count}", unit, OURS, {OURS: own}, {OURS: aim})] if own else []

    def against(self, what: str, unit: str, count: int, than: int, aim: str = "") -> list[Row]:
        """`count` devices, compared with `than`; alone if these are the same, or were not measured."""
        other = self._samples.get((what, than))
        if count == than or not other:
            return self.row(what, unit, count)
        name = f"at {than}"
        own = self._samples[what, count]
        samples = {OURS: own, name: other[: len(own)]}  # both are in the order of the rounds
        return [Row(f"{what}, {count}", unit, OURS, samples, {name: aim})]

    def beside(self, what: str, unit: str, count: int, other: str, aim: str = "") -> list[Row]:
        """Compared with another measurement, of the same number of devices."""
        samples = {OURS: self._samples[what, count], other: self._samples[other, count]}
        return [Row(f"{what}, {count}", unit, OURS, samples, {other: aim})]


UP, DOWN, FAILED, STATUS = "up --all, a line", "disconnect --all, a device", "lines that failed", "status --json"
NAMED, UNNAMED, DETACH = "connect DEVICE", "connect", "disconnect DEVICE"
RESIDENT, FURTHER, AT_REST = "monitor, resident", "monitor, a further device", "monitor idle, CPU a second, a device"


def measure(nbdattach: str, rounds: int, counts: tuple[int, ...] = COUNTS) -> list[Row]:
    figures = Figures()
    procfs.raise_descriptor_limit()  # the server has one for each connection
    # More threads a connection than one would be thousands.
    with nbdkit("--threads=1", "memory", "16M") as server:
        for number in range(rounds):
            alone = 0.0
            for count in counts if number == 0 else [count for count in counts if count <= OFTEN]:
                began = time.monotonic()
                megabytes = _one_crowd(nbdattach, server, count, figures)
                print(f"crowd of {count}: {time.monotonic() - began:.0f} s", flush=True)
                if count == counts[0]:
                    alone = megabytes
                else:
                    figures.add(FURTHER, count, (megabytes - alone) * 1024 / (count - counts[0]))
    return [row for count in counts for row in rows(figures, count)]


def rows(figures: Figures, count: int) -> list[Row]:
    compared = A_COMMAND if count == COMPARED else ""
    return [
        *figures.against(UP, "ms", count, COUNTS[1] if count > COUNTS[1] else count, A_LINE),
        *figures.row(FAILED, "count", count, "<= 0"),
        *figures.row(STATUS, "ms", count),
        *figures.row(NAMED, "ms", count),
        *figures.beside(UNNAMED, "ms", count, NAMED, compared),
        *figures.against(DETACH, "ms", count, COUNTS[0], compared),
        *figures.row(RESIDENT, "MB", count, MEMORY if count == COUNTS[1] else ""),
        *figures.row(FURTHER, "kB", count, A_DEVICE),
        *figures.row(AT_REST, "ms", count),  # for its aim see `watching`
        *figures.row(DOWN, "ms", count),
    ]


def _one_crowd(nbdattach: str, server: Server, count: int, figures: Figures) -> float:
    """MB that are resident in a monitor that was started for these devices."""
    _start_monitor(nbdattach, server)
    devices = [Device(number) for number in range(count)]
    with tempfile.NamedTemporaryFile("w", prefix="bench-") as table:
        for device in devices:
            name = Path(device.path).name
            # The tag: lines with the same one are attached one after the other.
            print(f"{name} {server.uri} - shared,tag={name},backend=netlink", file=table)
        table.flush()
        took = _timed([nbdattach, "up", "--all", "--table", table.name])
    ready = sum(device.ready for device in devices)
    figures.add(UP, count, took / count)
    figures.add(FAILED, count, count - ready)
    for _ in range(REPEATS):
        figures.add(STATUS, count, run([nbdattach, "status", "--json"]))
    _one_more(nbdattach, server, count, figures)
    time.sleep(REST_SECONDS)
    monitor = monitor_process.pid()
    megabytes = monitor_process.resident(monitor)
    figures.add(RESIDENT, count, megabytes)
    if count >= LEAST_DEVICES:
        time.sleep(SETTLE_SECONDS)
        before = monitor_process.cpu_milliseconds(monitor)
        began = time.monotonic()
        time.sleep(IDLE_SECONDS)
        used = monitor_process.cpu_milliseconds(monitor) - before
        figures.add(AT_REST, count, used / (time.monotonic() - began) / count)
    took = _timed([nbdattach, "disconnect", "--all"])
    figures.add(DOWN, count, took / count)
    until(lambda: all(device.free for device in devices))
    monitor_process.stop()
    return megabytes


def _start_monitor(nbdattach: str, server: Server) -> None:
    """A new one, so that no figure has its start."""
    monitor_process.stop()
    contender, device = netlink(nbdattach), Device(0)
    run(contender.attach(server, device.path))
    run(contender.detach(device.path))
    until(lambda: device.free)


def _one_more(nbdattach: str, server: Server, count: int, figures: Figures) -> None:
    """Attaches a device beside all others, named or not, and detaches it."""
    contender = netlink(nbdattach)
    device = Device(count)
    attach = contender.attach(server, device.path)
    for _ in range(REPEATS):
        figures.add(NAMED, count, run(attach))
        time.sleep(REST_SECONDS)
        figures.add(DETACH, count, run(contender.detach(device.path)))
        until(lambda: device.free)
        time.sleep(REST_SECONDS)
        figures.add(UNNAMED, count, run(attach[:-1]))
        time.sleep(REST_SECONDS)
        run([nbdattach, "disconnect", "--tag", attach[attach.index("--tag") + 1]])
        time.sleep(REST_SECONDS)


def _timed(command: list[str]) -> float:
    """Milliseconds. Unlike `run`, a failure is no exception: it is counted by its devices, and said."""
    start = time.monotonic()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    took = (time.monotonic() - start) * 1000
    if done.stderr:
        print(f"{command[1]}: {done.stderr.decode(errors='replace')[-2000:]}", flush=True)
    return took


def counts_up_to(most: int) -> tuple[int, ...]:
    """The usual numbers of devices as far as `most`, and that one."""
    return tuple(sorted({*(count for count in COUNTS if count < most), most}))
