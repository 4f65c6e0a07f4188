# SPDX-License-Identifier: GPL-2.0-or-later
"""Many devices on one host: the monitor's memory, and the time to attach all at once."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import monitor_process
from attached import REST_SECONDS, Device, until
from contenders import Contender
from figures import Row
from servers import Server

# More is slow: 16 commands are up to a minute of CPU time in a guest.
WATCHED = (1, 16)
AT_ONCE = 16
MOST_ROUNDS = 3


def monitor_memory(contender: Contender, server: Server, rounds: int) -> list[Row]:
    """MB that are resident (VmRSS) in a monitor that watches so many devices; a new monitor each round."""
    rows = [Row(f"{count} attached", "MB", contender.name, {contender.name: []}) for count in WATCHED]
    devices = [Device(number) for number in range(max(WATCHED))]
    for _ in range(rounds):
        monitor_process.stop()
        before = 0
        for row, count in zip(rows, WATCHED, strict=True):
            attach(contender, server, devices[before:count])
            time.sleep(REST_SECONDS)
            row.samples[contender.name].append(monitor_process.resident(monitor_process.pid()))
            before = count
        detach(contender, devices)
    return rows


def at_once(contenders: list[Contender], server: Server, rounds: int) -> list[Row]:
    """Milliseconds from the start of one process a device until all have ended, and all devices have their size."""
    subject, count = contenders[0].name, f"{AT_ONCE} at once"
    for contender in contenders:  # reads the programs from disk
        attach(contender, server, [Device(0)])
        detach(contender, [Device(0)])
    return [
        _at_once(Row(f"{count}, a monitor runs", "ms", subject, {}), contenders, server, rounds, lambda: None),
        _at_once(Row(f"{count}, none runs", "ms", subject, {}), contenders, server, rounds, monitor_process.stop),
    ]


def _at_once(row: Row, contenders: list[Contender], server: Server, rounds: int, before: Callable[[], None]) -> Row:
    devices = [Device(number) for number in range(AT_ONCE)]
    for number in range(rounds):
        for contender in contenders if number % 2 else contenders[::-1]:
            before()
            taken = attach(contender, server, devices)
            detach(contender, devices)
            row.samples.setdefault(contender.name, []).append(taken)
    return row


def attach(contender: Contender, server: Server, devices: list[Device]) -> float:
    """Milliseconds."""
    start = time.monotonic()
    run_all([contender.attach(server, device.path) for device in devices])
    until(lambda: all(device.ready for device in devices))
    return (time.monotonic() - start) * 1000


def detach(contender: Contender, devices: list[Device]) -> None:
    time.sleep(REST_SECONDS)
    run_all([contender.detach(device.path) for device in devices])
    until(lambda: all(device.free for device in devices))
    time.sleep(REST_SECONDS)


def run_all(commands: list[list[str]]) -> None:
    """All at once; returns when the last one has ended. Raises `CalledProcessError` when one fails."""
    null = subprocess.DEVNULL
    processes = [subprocess.Popen(one, stdin=null, stdout=null, stderr=subprocess.PIPE) for one in commands]
    for process in processes:
        _, words = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args, stderr=words)
