# SPDX-License-Identifier: GPL-2.0-or-later
"""--retry-for: how long a first connection is tried again. Users are told once, at the first failure.

A boot that waits for a server would otherwise have nothing in the journal until it gives up.
"""

from __future__ import annotations

from nbdattach.deadline import Deadline
from nbdattach.errors import NbdattachError
from nbdattach.host import upgrade
from nbdattach.reporter import Trace

_PAUSE = 0.5


class Patience:
    """`seconds` from now on."""

    def __init__(self, seconds: float, say: Trace) -> None:
        self._deadline = Deadline(seconds)
        self._say: Trace | None = say

    def goes_on_after(self, error: NbdattachError) -> bool:
        """Waits a moment, and returns whether there is time for another try."""
        left = self._deadline.remaining()
        if left > 0 and self._say:
            upgrade.load_all()
            self._say(f"{error}; trying again for {max(1, round(left))} s")
            self._say = None
        return self._deadline.sleep(_PAUSE)
