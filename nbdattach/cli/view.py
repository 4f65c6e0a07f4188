# SPDX-License-Identifier: GPL-2.0-or-later
"""The live view as text: computes rates from samples of the devices, and the lines of a page. No I/O, no terminal.

Times are in seconds on one monotonic clock, widths in columns of a terminal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from nbdattach.cli import render
from nbdattach.cli.status_table import own_tag
from nbdattach.immutable import immutable
from nbdattach.text import plain

if TYPE_CHECKING:
    from nbdattach.attached.status import Status
    from nbdattach.kernel.sysfs import Stat

HISTORY = 300  # samples kept of a device, and shown if there is room
_LEAST_HISTORY = 8  # fewer say nothing
_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "_.:-=+*#"
_GAP = "  "
_HEADS = ("DEVICE", "STATE", "READ/s", "WRITE/s", "INFLIGHT", "REQ/s", "LATENCY")
# Columns of the numbers behind the state: "1.234 MiB", "999 ms".
_NUMBERS = (9, 9, 8, 6, 7)
_HISTORY_HEAD = "HISTORY"
_KEYS = "q: quit"
_SPANS = ((86400, "d"), (3600, "h"), (60, "min"))


@immutable
class Sample:
    """One device at one moment. `status` is None for a device that the user named and that is not attached."""

    device: str
    status: Status | None
    stat: Stat | None


@dataclass(slots=True)
class _Track:
    """The samples of one attachment so far; all rates are None before there are two samples.

    `read` and `written` are in bytes a second, `requests` those done in a second. `latency` is the seconds that one
    took on average, None if none was done.
    """

    sample: Sample
    moment: float
    read: float | None = None
    written: float | None = None
    requests: float | None = None
    latency: float | None = None
    history: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def goes_on_in(self, sample: Sample) -> bool:
        """False if the device was attached anew: its counters may have restarted, so its history restarts, too."""
        old, new = self.sample, sample
        if not (old.status and new.status and old.stat and new.stat):
            return False
        same = (old.status.since, old.status.pid) == (new.status.since, new.status.pid)
        return same and old.stat.read <= new.stat.read and old.stat.written <= new.stat.written

    def add(self, moment: float, sample: Sample) -> None:
        seconds = moment - self.moment
        if seconds > 0 and self.sample.stat and sample.stat:
            self.read = (sample.stat.read - self.sample.stat.read) / seconds
            self.written = (sample.stat.written - self.sample.stat.written) / seconds
            self.history.append(self.read + self.written)
            done = self.sample.stat.requests, sample.stat.requests
            self.requests = (done[1] - done[0]) / seconds
            took = sample.stat.waited - self.sample.stat.waited
            self.latency = took / (done[1] - done[0]) if done[1] > done[0] else None
        self.sample, self.moment = sample, moment


class View:
    """Collects samples of the devices with `add`; `page` shows them, as often as needed."""

    def __init__(self) -> None:
        self._tracks: dict[str, _Track] = {}

    def add(self, moment: float, samples: Sequence[Sample]) -> None:
        """Adds one sample of each device; a device without one is forgotten."""
        tracks = {}
        for sample in samples:
            track = self._tracks.get(sample.device)
            if track and track.goes_on_in(sample):
                track.add(moment, sample)
            else:
                track = _Track(sample, moment)
            tracks[sample.device] = track
        self._tracks = tracks

    def page(self, width: int, height: int, now: str, ascii_only: bool = False) -> list[str]:
        """At most `height` lines of at most `width` columns. `now` is the time of day, as `clock.now` tells it.

        Each device has a line, as far as there is room. Lines that are left show troubles first, whole where that fits,
        then the targets, of all devices or of none.
        """
        tracks = list(self._tracks.values())
        room = height - (2 if tracks and height > 2 else 1)
        shown = tracks[: max(room, 0)]
        spare = room - len(shown)
        troubles = _troubles(shown, now, width, spare)
        with_targets = len(shown) <= spare - sum(map(len, troubles.values()))

        attached = sum(track.sample.status is not None for track in tracks)
        lines = [_summary(attached, len(tracks) - len(shown), width)]
        table = _table(shown, width, _ASCII_BARS if ascii_only else _BARS)
        if room < height - 1:
            lines.append(table[0])
        for track, line in zip(shown, table[1:], strict=True):
            lines.append(line)
            if with_targets and track.sample.status:
                lines.append(_GAP + _target_text(track.sample.status))
            lines += [_GAP + line for line in troubles.get(track.sample.device, ())]
        if ascii_only:
            lines = [line.encode("ascii", "backslashreplace").decode("ascii") for line in lines]
        # Cut each to the width, so that each stays one line.
        return [render._cell(line.rstrip(), width).rstrip() for line in lines[:height]] if width > 0 else []


def _troubles(tracks: Sequence[_Track], now: str, width: int, spare: int) -> dict[str, list[str]]:
    """Lines by device: the first line of as many as there is room for, then the further lines."""
    whole = {
        track.sample.device: render.wrapped(_trouble_text(track.sample.status, now), max(width - len(_GAP), 1))
        for track in tracks
        if track.sample.status and track.sample.status.trouble is not None
    }
    shown = {device: whole[device][:1] for device in [*whole][:spare]}
    spare -= len(shown)
    for device in shown:
        more = whole[device][1 : 1 + spare]
        shown[device] += more
        spare -= len(more)
    return shown


def _summary(attached: int, hidden: int, width: int) -> str:
    """The longest that fits; even the smallest terminal must show that devices are hidden."""
    said = f"{attached or 'no'} device{'s' if attached > 1 else ''} attached"
    full = f"{said}, {hidden} not shown" if hidden else said
    choice = [full, f"{hidden} not shown", f"+{hidden}"] if hidden else [said]
    if len(full) + len(_GAP) + len(_KEYS) <= width:
        return full + _KEYS.rjust(width - len(full))
    return next((text for text in choice if len(text) <= width), choice[-1])


def _table(tracks: Sequence[_Track], width: int, bars: str) -> list[str]:
    """The heads and a line for each device. Columns that do not fit are left out from the right, the history first."""
    rows = [_HEADS, *(_cells(track) for track in tracks)]
    widths = [max(len(row[0]) for row in rows), max(len(row[1]) for row in rows), *_NUMBERS]
    while len(widths) > 1 and _taken(widths) > width:
        widths.pop()
    lines = []
    for row in rows:
        words = row[:2] if len(widths) > 1 else row[:1]
        cells = [text.ljust(wide) for text, wide in zip(words, widths, strict=False)]
        cells += [text.rjust(wide) for text, wide in zip(row[2:], widths[2:], strict=False)]
        lines.append(_GAP.join(cells))
    left = min(width - _taken(widths) - len(_GAP), HISTORY)
    if len(widths) == len(_HEADS) and left >= _LEAST_HISTORY:
        histories = [
            _HISTORY_HEAD.rjust(left),
            *(_bars(list(track.history)[-left:], bars).rjust(left) for track in tracks),
        ]
        lines = [line + _GAP + history for line, history in zip(lines, histories, strict=True)]
    return lines


def _taken(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _cells(track: _Track) -> tuple[str, ...]:
    sample = track.sample
    if sample.status is None:
        return (sample.device, "not attached", *["-"] * len(_NUMBERS))
    return (
        sample.device,
        plain(sample.status.state),
        _rate_text(track.read),
        _rate_text(track.written),
        "-" if sample.stat is None else str(sample.stat.inflight),
        "-" if track.requests is None else f"{track.requests:.0f}",
        "-" if track.latency is None else _time_text(track.latency),
    )


def _time_text(seconds: float) -> str:
    """In two or three digits: 1.2 ms, 340 ms, 2.5 s. The kernel counts milliseconds."""
    unit, number = ("ms", seconds * 1000) if seconds < 0.9995 else ("s", seconds)
    return f"{number:.1f} {unit}" if number < 9.95 else f"{number:.0f} {unit}"


def _rate_text(rate: float | None) -> str:
    return render.size_text(None if rate is None else round(rate))


def _bars(values: Sequence[float], bars: str) -> str:
    """One bar for each value: the tallest for the greatest value, the lowest only for 0."""
    most = max(values, default=0.0)
    steps = len(bars) - 1
    return "".join(bars[max(1, round(value / most * steps))] if value else bars[0] for value in values)


def _target_text(status: Status) -> str:
    tag = own_tag(status)
    users = [f"mounted at {plain(path)}" for path in status.mounts]
    users += [f"held by {plain(name)}" for name in status.holders]
    return ", ".join([*([f"tag {plain(tag)}"] if tag else []), plain(status.target or "?"), *users])


def _trouble_text(status: Status, now: str) -> str:
    """With spans, not moments: 80 columns then have room for the reason, and the user need not subtract."""
    trouble = status.trouble or {}
    since, next_try = trouble.get("since"), trouble.get("next_try")
    soon = f", next try in {_span(now, next_try)}" if next_try else ""
    return f"{plain(status.state)} for {_span(since, now)}{soon}: {plain(trouble.get('error') or 'trying')}"


def _span(begin: str | None, end: str | None) -> str:
    """From one RFC 3339 moment to the other, in the largest unit that gives at least 1; never negative."""
    try:
        seconds = int((datetime.fromisoformat(end or "") - datetime.fromisoformat(begin or "")).total_seconds())
    except (ValueError, TypeError):
        return "?"
    for size, unit in _SPANS:
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{max(0, seconds)} s"
