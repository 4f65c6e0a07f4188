# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor's process: found by its command line, because builds differ in how they speak with theirs."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from attached import until
from leftovers import monitors, workers

# User-mode Linux counts CPU time in ticks of 10 ms: less than that of a look is seen by chance only.
LEAST_DEVICES = 16


def pid() -> int:
    """Raises `ProcessLookupError` unless exactly one runs."""
    found = monitors()
    if len(found) != 1:
        raise ProcessLookupError(f"monitors: {found}")
    return found[0]


def stop() -> None:
    """On return none runs."""
    for one in monitors():
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGTERM)
    until(lambda: not monitors())


def folders_of_code() -> set[str]:
    """From these the monitor, and workers, import nbdattach: the argument after their code names one."""
    found = set()
    for one, _ in workers():
        with suppress(OSError, ValueError):  # it may have ended, or be a copy of a command
            arguments = Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")
            found.add(os.fsdecode(arguments[arguments.index(b"-c") + 2]))
    return found


def resident(one: int) -> float:
    """MB of VmRSS."""
    for line in Path(f"/proc/{one}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(one)


def cpu_milliseconds(one: int) -> float:
    """User and system time of that process so far (proc_pid_stat(5)); any process, not only a monitor."""
    fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")
