# SPDX-License-Identifier: GPL-2.0-or-later
"""The time of day as our JSON tells it, and the clock by which ages are told."""

from __future__ import annotations

import datetime
import time


def now(ahead: float = 0.0) -> str:
    """RFC 3339 in UTC, `ahead` seconds from now."""
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def boot_time() -> float:
    """Seconds since this machine was started. Nobody sets this clock, it is the same for all processes, and it goes on
    while the machine sleeps (CLOCK_BOOTTIME, clock_gettime(2)).
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
