# SPDX-License-Identifier: GPL-2.0-or-later
"""The events of the monitor: fixed words for programs, with their priorities; and its log, which has them as fields.

The words are in nbdattach-monitor.service(8). Programs rely on them, unlike on the text of a line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from nbdattach.device import Device
from nbdattach.host.log import ERR, INFO, NO_FIELDS, NOTICE, WARNING, Write


class Event(NamedTuple):
    """`priority` as in syslog(3)."""

    word: str
    priority: int


WATCHING = Event("watching", INFO)
LOST = Event("lost", WARNING)
UNREACHABLE = Event("unreachable", WARNING)
REFUSED = Event("refused", WARNING)
FAILING = Event("failing", ERR)
RECONNECTED = Event("reconnected", NOTICE)
MOVED = Event("moved", NOTICE)
RESIZED = Event("resized", NOTICE)
STOPPING = Event("stopping", WARNING)
CHANGED = Event("changed", WARNING)
ENDED = Event("ended", INFO)
NOTE = Event("note", NOTICE)
TROUBLE = Event("trouble", ERR)
EVENTS = (
    WATCHING,
    LOST,
    UNREACHABLE,
    REFUSED,
    FAILING,
    RECONNECTED,
    MOVED,
    RESIZED,
    STOPPING,
    CHANGED,
    ENDED,
    NOTE,
    TROUBLE,
)


class Log(Protocol):
    """Writes one line. `about` are more fields of the journal's entry."""

    def __call__(self, line: str, event: Event, about: Mapping[str, str] = NO_FIELDS, /) -> None: ...


def log_to(write: Write) -> Log:
    def log(line: str, event: Event, about: Mapping[str, str] = NO_FIELDS, /) -> None:
        write(line, event.priority, {"NBDATTACH_EVENT": event.word, **about})

    return log


def log_of(log: Log, device: Device, tag: str, target: Callable[[], str]) -> Log:
    """The log of one device; `target` returns the server in use."""

    def log_one(line: str, event: Event, about: Mapping[str, str] = NO_FIELDS, /) -> None:
        fields = {"NBDATTACH_DEVICE": device.path, "NBDATTACH_TAG": tag, "NBDATTACH_TARGET": target()}
        log(line, event, {**fields, **about})

    return log_one
