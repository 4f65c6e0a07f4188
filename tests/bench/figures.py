# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of a bench: samples in rounds, compared round by round. Must not know the measurement.

A figure alone says more about the machine than about the tool. The tools of a row are measured in turn within each
round, so that load of the machine meanwhile hits all of them, and the ratio of one round is fair. Aims are judged by
the median of these ratios, or of the figures if an aim limits these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from aims import Aim

# Of the columns; the first one is as wide as its longest text, and the last one ends a line.
LEAST = 34
WIDTHS = (17, 20, 9, 21)


@dataclass(frozen=True)
class Row:
    """One thing measured with several tools. `samples` are by tool, one a round, in `unit`.

    `aims` are by tool, as texts of `Aim`: for the ratio of `subject` to that tool; by the subject, for its own figure.
    Raises `ValueError` for another text.
    """

    what: str
    unit: str
    subject: str
    samples: dict[str, list[float]]
    aims: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for text in filter(None, self.aims.values()):
            Aim.of(text)

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
        return f"{number(min(own))}..{number(max(own))}" if own else "-"

    def middle(self, name: str) -> float | None:
        """The median of the figures of that tool; None if there are none."""
        return median(self.samples[name]) if self.samples[name] else None

    def ratios(self, other: str) -> list[float]:
        """One a round, without rounds in which the other tool has 0."""
        pairs = zip(self.samples[self.subject], self.samples[other], strict=True)
        return [ours / theirs for ours, theirs in pairs if theirs]

    def ratio(self, other: str) -> str:
        """Median and spread of the ratios of all rounds."""
        ratios = self.ratios(other)
        if not ratios:
            return "-"
        return f"{median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"

    def missed(self) -> Iterator[str]:
        """A text for each aim that the median misses, or that has no figure to be judged by."""
        for other, text in self.aims.items():
            if not text:
                continue
            own = other == self.subject or Aim.of(text).own
            ratios = [] if own else self.ratios(other)
            found = self.middle(self.subject) if own else median(ratios) if ratios else None
            if not Aim.of(text).holds(found):
                # To three figures at least: the limit itself must not be printed beside a figure that misses it.
                figure = "no figure" if found is None else f"{found:.3g}" if found < 100 else f"{found:.0f}"
                what = f"{self.what}, {self.unit}" if own else f"{self.what}, against {other}"
                yield f"{what}: {figure}, aim {text}"


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(title: str, rows: list[Row]) -> str:
    """A line for each pair of the subject and another tool; or for the subject, if a row is of it alone."""
    subject = rows[0].subject
    if all(row.alone for row in rows):
        cells = [(title, subject, "min..max", "aim"), *map(_cells_alone, rows)]
        widths: tuple[int, ...] = WIDTHS[:2]
    else:
        cells = [(title, subject, "against", "its", "ratio (min..max)", "aim")]
        cells += [line for row in rows for line in _cells(row)]
        widths = WIDTHS
    first = max(LEAST, *(len(line[0]) for line in cells))
    header, *lines = [_line(line, (first, *widths)) for line in cells]
    return "\n".join([header, "-" * len(header), *lines]) + "\n"


def summary(tables: dict[str, list[Row]]) -> str:
    """The aims that were missed, by the titles of their tables."""
    missed = [f"  {title}: {text}" for title, rows in tables.items() for row in rows for text in row.missed()]
    return "\n".join(["Aims that were missed:", *(missed or ["  none"])])


def _cells_alone(row: Row) -> tuple[str, ...]:
    ours = _number(row.middle(row.subject))
    return f"{row.what}, {row.unit}", ours, row.spread(), row.aims.get(row.subject, "")


def _cells(row: Row) -> list[tuple[str, ...]]:
    what, ours, spread, own_aim = _cells_alone(row)
    if row.alone:
        return [(what, ours, "", "", f"({spread})", own_aim)]
    lines: list[tuple[str, ...]] = []
    for other in row.samples:
        if other != row.subject:
            aim = ", ".join(filter(None, (row.aims.get(other, ""), own_aim)))
            lines.append((what, ours, other, _number(row.middle(other)), row.ratio(other), aim))
            what = ours = own_aim = ""
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else number(value)


def _line(cells: tuple[str, ...], widths: tuple[int, ...]) -> str:
    """Numbers, in the second column and in the fourth, are at its right."""
    *others, last = cells
    padded = [
        f"{cell:>{width}}" if at in (1, 3) else f"{cell:{width}}"
        for at, (cell, width) in enumerate(zip(others, widths, strict=True))
    ]
    return "  ".join([*padded, last]).rstrip()
