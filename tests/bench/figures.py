# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of a bench: samples in rounds, compared round by round. Must not know the measurement.

A figure alone says more about the machine than about the tool. The tools of a row are measured in turn within each
round, so that load of the machine meanwhile hits all of them, and the ratio of one round is fair.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

WIDTHS = (34, 17, 20, 9, 21)


@dataclass(frozen=True)
class Row:
    """One thing measured with several tools. `samples` are by tool, one a round, in `unit`.

    `aims` are by tool: the target for the ratio of `subject` to that tool. Nothing here judges it.
    """

    what: str
    unit: str
    subject: str
    samples: dict[str, list[float]]
    aims: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Row:
        return cls(**plain)

    @property
    def rounds(self) -> int:
        return len(self.samples[self.subject])

    @property
    def alone(self) -> bool:
        return self.samples.keys() == {self.subject}

    def spread(self) -> str:
        """Of the subject's own figures."""
        own = self.samples[self.subject]
        return f"{number(min(own))}..{number(max(own))}"

    def ratio(self, other: str) -> str:
        """Median and spread of the ratios of all rounds."""
        pairs = zip(self.samples[self.subject], self.samples[other], strict=True)
        ratios = [ours / theirs for ours, theirs in pairs if theirs]
        if not ratios:
            return "-"
        return f"{median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(title: str, rows: list[Row]) -> str:
    """A line for each pair of the subject and another tool; or for the subject, if all rows are of it alone."""
    subject = rows[0].subject
    if all(row.alone for row in rows):
        header = _line_alone(title, subject, "min..max", "aim")
    else:
        header = _line(title, subject, "against", "its", "ratio (min..max)", "aim")
    lines = [header, "-" * len(header)]
    for row in rows:
        lines += _lines(row)
    return "\n".join(lines) + "\n"


def _lines(row: Row) -> list[str]:
    what, ours = f"{row.what}, {row.unit}", number(median(row.samples[row.subject]))
    if row.alone:
        return [_line_alone(what, ours, row.spread(), row.aims.get(row.subject, ""))]
    lines = []
    for other in row.samples:
        if other != row.subject:
            theirs = number(median(row.samples[other]))
            lines.append(_line(what, ours, other, theirs, row.ratio(other), row.aims.get(other, "")))
            what = ours = ""
    return lines


def _line(what: str, ours: str, other: str, theirs: str, ratio: str, aim: str) -> str:
    a, b, c, d, e = WIDTHS
    return f"{what:{a}} {ours:>{b}}  {other:{c}} {theirs:>{d}}  {ratio:{e}} {aim}".rstrip()


def _line_alone(what: str, ours: str, spread: str, aim: str) -> str:
    a, b, c, _, _ = WIDTHS
    return f"{what:{a}} {ours:>{b}}  {spread:{c}} {aim}".rstrip()
