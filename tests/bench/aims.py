# SPDX-License-Identifier: GPL-2.0-or-later
"""An aim: the limit of a figure, or of a ratio to another tool's figure. Must not know the measurement.

As text, which a guest hands over: "<= 1.5" limits the ratio to the other tool, "ours <= 80" the subject's own figure,
in the unit of its row. Of a subject alone, both limit its own figure.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_TEXT = re.compile(r"(ours )?(<=|>=|<|>) (\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Aim:
    """`own`: it limits the subject's own figure, not the ratio to the other tool."""

    own: bool
    relation: str
    limit: float

    @classmethod
    def of(cls, text: str) -> Aim:
        """Raises `ValueError`: an aim that nothing can judge would never be missed."""
        found = _TEXT.fullmatch(text)
        if not found:
            raise ValueError(f"no aim: {text!r}")
        return cls(bool(found[1]), found[2], float(found[3]))

    def holds(self, figure: float | None) -> bool:
        """False if there is no figure."""
        return figure is not None and _HOLDS[self.relation](figure, self.limit)
