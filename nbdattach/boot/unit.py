# SPDX-License-Identifier: GPL-2.0-or-later
"""Stops the systemd unit of a device; the action depends on why systemd stops it.

* Only this unit: the device is detached; if it is in use, it stays attached.
* For a restart: a device in use stays attached and gets a new connection. Its users do not notice.
* For a shutdown: the device's users are about to stop, so we wait for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from nbdattach.attached.users import users_of
from nbdattach.boot import table
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, NbdattachError
from nbdattach.host import copies, systemd
from nbdattach.kernel.sysfs import Kernel
from nbdattach.operations import handover
from nbdattach.reporter import QUIET, Reporter

# systemd stops the file systems and swap on it, too, which may take that long by its default.
UNMOUNT_SECONDS = 90
# For other users, which may let go by themselves: volumes, processes that end. Others stay until the machine is off.
HOLDER_SECONDS = 5
# For the sync before a device in use is left attached; together with the above, less than the unit's TimeoutStopSec.
SYNC_SECONDS = 120
_POLL = 0.2


def down(
    device: Device,
    unit: str,
    path: str = table.PATH,
    reporter: Reporter = QUIET,
) -> str:
    """`table.down`, as the unit's ExecStop."""

    def detach() -> str:
        return table.down(device, path, reporter)

    try:
        return detach()
    except DeviceInUse:
        if systemd.restarting(unit):
            _hand_over(device, reporter.say)
            return ""
        if not systemd.shutting_down():
            raise
    reporter.say(f"{device.path}: in use: {users_of(device) or 'open'}; waiting for its users")
    try:
        return _when_unused(device, detach)
    except DeviceInUse:
        _save(device, reporter.say)
        raise


def _hand_over(device: Device, say: Callable[[str], None]) -> None:
    """A failure is only reported, because the attachment still has its old connection."""
    kept = f"{device.path}: in use, so it stays attached"
    try:
        say(f"{kept}: it has a new connection to {handover.reconnect(device)}")
    except NbdattachError as error:
        say(f"{kept}, with its old connection: {error}")


def _save(device: Device, say: Callable[[str], None]) -> None:
    """Writes all dirty data to the server now, because systemd stops the network next."""

    def sync() -> str:
        os.sync()
        return "done"

    done = copies.answer_within(SYNC_SECONDS, sync)
    where = "data written so far is on its server" if done else "not all written data is on its server"
    say(f"{device.path}: still in use, so it stays attached; {where}")


def _when_unused(device: Device, detach: Callable[[], str]) -> str:
    unmount, holder = Deadline(UNMOUNT_SECONDS), Deadline(HOLDER_SECONDS)
    while True:
        try:
            return detach()
        except DeviceInUse:
            if any(one.use.kind in ("mount", "swap") for one in users_of(device).all):
                holder = Deadline(HOLDER_SECONDS)
            if not (Kernel(device).attached and holder.sleep(_POLL) and not unmount.passed):
                raise
