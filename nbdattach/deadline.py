# SPDX-License-Identifier: GPL-2.0-or-later
"""A moment until which something must be done."""

from __future__ import annotations

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

    def sleep(self, seconds: float) -> bool:
        """Waits that long or until the deadline; False when it has passed."""
        time.sleep(min(seconds, self.remaining()))
        return not self.passed
