# SPDX-License-Identifier: GPL-2.0-or-later
"""The device that a contender attaches, and its processes, commands and states. Must not know the contenders."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

READY_SECONDS = 60.0
# A tool's processes come to rest: one of nbd-client's opens the device once more and ends.
REST_SECONDS = 0.5


class Device:
    """/dev/nbdN, and the kernel's view of it."""

    def __init__(self, number: int) -> None:
        self.path = f"/dev/nbd{number}"
        self._sys = Path(f"/sys/block/nbd{number}")

    @property
    def ready(self) -> bool:
        return (self._sys / "pid").exists() and (self._sys / "size").read_text() != "0\n"

    @property
    def free(self) -> bool:
        return not (self._sys / "pid").exists()

    @property
    def mebibytes(self) -> int:
        return int((self._sys / "size").read_text()) >> 11

    def limit(self, max_sectors_kb: int) -> None:
        (self._sys / "queue/max_sectors_kb").write_text(str(max_sectors_kb))


def run(command: list[str]) -> float:
    """Milliseconds until the command has ended. Raises `RuntimeError` with its errors if it fails."""
    start = time.monotonic()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    took = (time.monotonic() - start) * 1000
    if done.returncode:
        raise RuntimeError(f"{command}: exit status {done.returncode}: {done.stderr.decode(errors='replace')}")
    return took


def until(holds: Callable[[], bool]) -> float:
    """Milliseconds until it holds."""
    start = time.monotonic()
    while not holds():
        if time.monotonic() > start + READY_SECONDS:
            raise TimeoutError("the device is in no state to go on")
        time.sleep(0.001)
    return (time.monotonic() - start) * 1000


def processes() -> set[int]:
    """All but the kernel's own."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit() and os.path.exists(f"/proc/{name}/exe")}
