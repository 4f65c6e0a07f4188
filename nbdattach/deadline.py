# SPDX-License-Identifier: GPL-2.0-or-later
"""A moment until which something must be done."""

from __future__ import annotations

import os
import time


class Deadline:
    """`seconds` from now, on the monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left, 0.0 when it has passed."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        return self.remaining() == 0.0

    def nap(self, least: float, most: float) -> bool:
        """As `sleep`, for a random time, so that two processes that wait for each other do not keep in step."""
        part = int.from_bytes(os.urandom(2)) / 0xFFFF
        return self.sleep(least + part * (most - least))

    def sleep(self, seconds: float) -> bool:
        """Waits that long or until the deadline; False when it has passed."""
        time.sleep(min(seconds, self.remaining()))
        return not self.passed
