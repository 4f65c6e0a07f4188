# SPDX-License-Identifier: GPL-2.0-or-later
"""The time of day in the format of our JSON, and the clock that measures ages."""

from __future__ import annotations

import datetime
import time


def now(ahead: float = 0.0) -> str:
    """RFC 3339 in UTC, `ahead` seconds from now."""
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def boot_time() -> float:
    """Seconds since this machine was started. This clock cannot be set, is the same for all processes, and goes on
    while the machine sleeps (CLOCK_BOOTTIME, clock_gettime(2)).
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
