"""The one door to udev: waits until it has done its part, where it runs at all."""

from __future__ import annotations

import os
import subprocess

CONTROL = "/run/udev/control"


def running() -> bool:
    return os.path.exists(CONTROL)


def settle(seconds: float) -> bool:
    """True when udev has handled all events up to now (symlinks, permissions), or does not run."""
    if not running():
        return True
    try:
        done = subprocess.run(
            ["udevadm", "settle", f"--timeout={max(1, int(seconds))}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds + 10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
