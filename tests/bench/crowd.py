# SPDX-License-Identifier: GPL-2.0-or-later
"""Many devices on one host: the monitor's memory, and the time to attach all at once."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from attached import REST_SECONDS, Device, until
from contenders import Contender
from figures import Row
from servers import Server

from nbdattach.errors import NbdattachError
from nbdattach.monitor import control

# More is slow: 16 commands are up to a minute of CPU time in a guest.
WATCHED = (1, 16)
AT_ONCE = 16
MOST_ROUNDS = 3
# Seconds.
PATIENCE = 30


def monitor_memory(contender: Contender, server: Server, rounds: int) -> list[Row]:
    """MB that are resident (VmRSS) in a monitor that watches so many devices; a new monitor each round."""
    rows = [Row(f"{count} attached", "MB", contender.name, {contender.name: []}) for count in WATCHED]
    devices = [Device(number) for number in range(max(WATCHED))]
    for _ in range(rounds):
        stop_monitor()
        before = 0
        for row, count in zip(rows, WATCHED, strict=True):
            attach(contender, server, devices[before:count])
            time.sleep(REST_SECONDS)
            row.samples[contender.name].append(resident(monitor()))
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
        _at_once(Row(f"{count}, none runs", "ms", subject, {}), contenders, server, rounds, stop_monitor),
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


# -- the monitor -------------------------------------------------------------------------------------------------


def monitor() -> int:
    """Its process id. Raises `NbdattachError` if none runs."""
    return int(control.ask(control.Request("ping"), PATIENCE))


def stop_monitor() -> None:
    """If one runs; on return none does."""
    try:
        pid = monitor()
    except NbdattachError:
        return
    os.kill(pid, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{pid}/exe").exists())


def resident(pid: int) -> float:
    """MB of VmRSS."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)
