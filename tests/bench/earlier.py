# SPDX-License-Identifier: GPL-2.0-or-later
"""Attaching and detaching with today's build and with the build before, each with a monitor of its own.

A monitor of one build must not serve a device of the other, so it is stopped whenever the builds take turns. The first
attachment of a turn starts a monitor, and is measured by itself.
"""

from __future__ import annotations

import time

import before
import cpu_time
import monitor_process
from attached import REST_SECONDS, Device, run, until
from contenders import Contender, nbdattach_with
from figures import Row
from servers import Server

OURS = "nbdattach"
BACKENDS = ("netlink", "ioctl")
# The measurements of `_one_turn`, in its order. In milliseconds.
WHATS = (
    "connect, no monitor runs",
    "connect, the command",
    "connect, until it has its size",
    "disconnect, the command",
    "disconnect, until it is free",
)


def measure(nbdattach: str, build_before: str, server: Server, rounds: int) -> list[Row]:
    """By backend; the first round reads the programs from disk and does not count."""
    programs = {OURS: nbdattach, before.NAME: build_before}
    rows = {
        backend: [
            Row(f"{backend}: {what}", "ms", OURS, {name: [] for name in programs}, {before.NAME: "<= 1"})
            for what in WHATS
        ]
        for backend in BACKENDS
    }
    for number in range(-1, rounds):
        for backend in BACKENDS:
            for name in programs if number % 2 else reversed(programs):
                contender = nbdattach_with(programs[name], name, "--backend", backend)
                figures = _one_turn(contender, programs[name], server, Device(0))
                for row, figure in zip(rows[backend], figures, strict=True):
                    if number >= 0:
                        row.samples[name].append(figure)
    monitor_process.stop()
    return [row for backend in BACKENDS for row in rows[backend]]


def _one_turn(contender: Contender, program: str, server: Server, device: Device) -> list[float]:
    monitor_process.stop()
    first = run(contender.attach(server, device.path))
    until(lambda: device.ready)
    require_code_of(program)
    time.sleep(REST_SECONDS)
    _detach(contender, device)
    attach = run(contender.attach(server, device.path))
    ready = attach + until(lambda: device.ready)
    time.sleep(REST_SECONDS)
    return [first, attach, ready, *_detach(contender, device)]  # as in WHATS


def _detach(contender: Contender, device: Device) -> tuple[float, float]:
    """Of the command, and until the device is free."""
    command = run(contender.detach(device.path))
    free = command + until(lambda: device.free)
    time.sleep(REST_SECONDS)
    return command, free


def require_code_of(program: str) -> None:
    """The monitor that runs has been started by that program, and has its code. Raises `RuntimeError` otherwise."""
    found = monitor_process.package(monitor_process.pid())
    is_before = program == str(before.tree() / "bin/nbdattach")
    if is_before != (found == str(before.tree())):
        raise RuntimeError(f"{program}: the monitor has the code in {found} ({cpu_time.interpreter(program)})")
