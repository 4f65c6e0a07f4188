# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages of a long operation to its caller, beside its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Trace: TypeAlias = Callable[[str], None]


class Reporter:
    """This one tells nothing. A subclass replaces the methods whose messages the caller wants.

    The threads of one operation may call it at the same time.
    """

    def say(self, line: str) -> None:
        """A note for the user, for example that data was lost."""

    def progress(self, seconds: float) -> None:
        """A flush has taken so many seconds until now. Called a few times a second."""

    def trace(self, step: str) -> None:
        """One step of the operation, for someone who looks for a fault."""


QUIET = Reporter()


def silent(_: str) -> None:
    """In the place of a `Trace`."""
