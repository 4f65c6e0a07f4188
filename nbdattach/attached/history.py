# SPDX-License-Identifier: GPL-2.0-or-later
"""The history of one attachment, for counters: how often and how long its server was away, and the last failure.

It is in /run/nbdattach beside the record, so it outlasts a restart of the monitor. One writer: the monitor.
"""

from __future__ import annotations

import contextlib
import dataclasses

from nbdattach import untrusted_json
from nbdattach.attached import state
from nbdattach.attached.state import Record
from nbdattach.device import Device
from nbdattach.immutable import as_dict, immutable
from nbdattach.kernel.leftovers import HISTORY


@immutable
class History:
    """`attachment` is the record's id. Times in seconds of `clock.boot_time`.

    `away` counts outages that are over; one that is not has begun at `lost_at`.
    """

    attachment: str
    reconnects: int = 0
    away: float = 0.0
    lost_at: float | None = None
    failed_at: float | None = None

    def lose(self, now: float) -> History:
        """A connection was lost; perhaps not the first one of this outage."""
        return self if self.lost_at is not None else dataclasses.replace(self, lost_at=now)

    def recover(self, now: float) -> History:
        """The driver has all its connections."""
        if self.lost_at is None:
            return self
        return dataclasses.replace(self, reconnects=self.reconnects + 1, away=self.seconds_away(now), lost_at=None)

    def fail(self, now: float) -> History:
        """A try to connect again has failed."""
        return dataclasses.replace(self, failed_at=now)

    def seconds_away(self, now: float) -> float:
        """All outages together, with the one that goes on."""
        return self.away + (0.0 if self.lost_at is None else max(0.0, now - self.lost_at))


def save(device: Device, history: History) -> None:
    """If /run is full, the next save has it all."""
    with contextlib.suppress(OSError):
        state.write(_path(device), as_dict(history))


def load(device: Device, record: Record) -> History:
    """An empty one if there is none of this very attachment, or if the file is broken."""
    with contextlib.suppress(OSError, ValueError):
        found = untrusted_json.made_of(History, state.content_of(_path(device)))
        if found.attachment == record.id:
            return found
    return History(record.id)


def _path(device: Device) -> str:
    return f"{state.path(device)}{HISTORY}"
