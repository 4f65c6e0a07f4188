# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes the measures of attached devices that `openmetrics` prints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbdattach.attached import history, state
from nbdattach.cli import openmetrics as metrics
from nbdattach.clock import boot_time
from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel

if TYPE_CHECKING:
    from nbdattach.attached.status import Status


def openmetrics(found: Sequence[Status]) -> str:
    return metrics.text([_measured(one) for one in found], _monitor_lives())


def _monitor_lives() -> bool | None:
    """None if we may not ask."""
    try:
        return os.path.isdir(state.RUN) and state.monitor_lives()
    except OSError:
        return None


def _measured(one: Status) -> metrics.Measured:
    device = Device(one.index)
    record = state.load(device)
    watched = record is not None and record.reconnect and record.backend == "netlink"
    return metrics.Measured(
        one, Kernel(device).under_way, history.load(device, record) if record and watched else None, boot_time()
    )
