# SPDX-License-Identifier: GPL-2.0-or-later
"""Attaching and detaching with today's build and with the build before, each with a monitor of its own.

A monitor of one build must not serve a device of the other, so it is stopped whenever the builds take turns. The first
attachment of a turn by netlink starts a monitor, and is measured by itself. By ioctl there is none.
"""

from __future__ import annotations

import time

import before
import contenders
import monitor_process
from attached import REST_SECONDS, Device, run, until
from contenders import Contender
from figures import Row
from servers import Server

OURS = "nbdattach"
FIRST = "connect, no monitor runs"
# The measurements of `_one_turn`, in its order.
WHATS = (
    "connect, the command",
    "connect, until it has its size",
    "disconnect, the command",
    "disconnect, until it is free",
)
BACKENDS = {"netlink": (*WHATS, FIRST), "ioctl": WHATS}


def measure(nbdattach: str, build_before: str, server: Server, rounds: int) -> list[Row]:
    """By backend; the first round reads the programs from disk and does not count."""
    programs = {OURS: nbdattach, before.NAME: build_before}
    rows = {
        backend: [
            Row(f"{backend}: {name}", "ms", OURS, {build: [] for build in programs}, {before.NAME: "<= 1"})
            for name in names
        ]
        for backend, names in BACKENDS.items()
    }
    for number in range(-1, rounds):
        for backend, rows_of_it in rows.items():
            for build in programs if number % 2 else reversed(programs):
                contender = contenders.build(programs[build], build, "--backend", backend)
                figures = _one_turn(contender, build, server, Device(0), backend == "netlink")
                for row, figure in zip(rows_of_it, figures, strict=True):
                    if number >= 0:
                        row.samples[build].append(figure)
    monitor_process.stop()
    return [row for rows_of_it in rows.values() for row in rows_of_it]


def _one_turn(contender: Contender, build: str, server: Server, device: Device, with_monitor: bool) -> list[float]:
    monitor_process.stop()
    first = []
    if with_monitor:
        first = [run(contender.attach(server, device.path))]
        until(lambda: device.ready)
        time.sleep(REST_SECONDS)
        _detach(contender, device)
    attach = run(contender.attach(server, device.path))
    ready = attach + until(lambda: device.ready)
    require_code_of(build)
    time.sleep(REST_SECONDS)
    return [attach, ready, *_detach(contender, device), *first]


def _detach(contender: Contender, device: Device) -> tuple[float, float]:
    """Of the command, and until the device is free."""
    command = run(contender.detach(device.path))
    free = command + until(lambda: device.free)
    time.sleep(REST_SECONDS)
    return command, free


def require_code_of(build: str) -> None:
    """All processes of nbdattach have the code of that build, and there is one. Raises `RuntimeError` otherwise.

    The command that has started them named the folder of its own code to them.
    """
    folders = monitor_process.folders_of_code()
    if not folders or any((build == before.NAME) != (folder == str(before.tree())) for folder in folders):
        raise RuntimeError(f"{build}: processes of ours have the code in {folders or 'no folder'}")
