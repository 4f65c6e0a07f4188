# SPDX-License-Identifier: GPL-2.0-or-later
"""Other processes, for a bare interpreter: `procfs` imports too much for that."""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the module signal builds enums on it: 0.9 MB
import os


def stat_fields(pid: int, proc: str = "/proc") -> list[str]:
    """The fields of proc_pid_stat(5) after the name, the first is the state; empty if there is no such process."""
    try:
        with open(f"{proc}/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(")")[2].split()  # the name may itself contain anything
    except OSError:
        return []


def started(pid: int) -> int:
    """When it started, in clock ticks since boot (field 22); 0 if there is no such process."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields else 0


def pidfd_of(pid: int, began: int) -> int:
    """A descriptor of that very process; -1 if it has gone."""
    try:
        found = os.pidfd_open(pid)
    except OSError:
        return -1
    if started(pid) == began:
        return found
    os.close(found)
    return -1


def children() -> list[int]:
    """Of our first thread."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [*map(int, file.read().split())]
    except OSError:
        return []


def send(pidfd: int, number: int) -> None:
    """Sends a signal, if the process still lives."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except OSError:
        pass


def end_signals() -> int:
    """SIGTERM and SIGINT end nothing from now on; the descriptor becomes readable at each."""
    woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return woken
