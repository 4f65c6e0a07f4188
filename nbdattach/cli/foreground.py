# SPDX-License-Identifier: GPL-2.0-or-later
"""connect --foreground: stays while the device is attached, speaks sd_notify(3), detaches safely on SIGTERM."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from nbdattach.api import Attachment
from nbdattach.device import parse_device
from nbdattach.errors import DeviceInUse, KernelRefused, NoConnection
from nbdattach.host import bare_process, systemd, upgrade
from nbdattach.kernel.sysfs import Kernel
from nbdattach.reporter import QUIET, Reporter

# With netlink there is no process to wait for, so we ask the kernel every so many seconds.
_LOOK = 2.0


def stay(attached: Attachment, say: Callable[[DeviceInUse | KernelRefused], None], reporter: Reporter = QUIET) -> None:
    """Returns when a signal has made us detach the device. If it cannot be detached safely, reports that and stays.

    Raises `NoConnection` when the attachment ends by itself, `NotAttached` when it has ended already.
    """
    device = parse_device(attached.device)
    there = attached.status()
    # A relay may die, and the monitor starts another.
    try:
        worker = os.pidfd_open(there.pid) if there.pid and there.backend == "ioctl" else None
    except ProcessLookupError:
        raise _ended(device.path) from None
    woken = bare_process.end_signals()  # first, as a signal while we load would leave the device attached
    upgrade.load_all()
    systemd.notify(f"READY=1\nSTATUS=attached at {device.path}")
    while True:
        ready, _, _ = select.select([one for one in (worker, woken) if one is not None], [], [], _LOOK)
        if worker in ready or Kernel(device).pid != attached.pid:
            raise _ended(device.path)
        if not ready:
            continue
        os.read(woken, 1)
        systemd.notify("STOPPING=1")
        try:
            attached.disconnect(reporter=reporter)
        except (DeviceInUse, KernelRefused) as error:
            say(error)
        else:
            return


def _ended(path: str) -> NoConnection:
    return NoConnection(path, "no longer attached: the server went away, or another command detached it", "see dmesg")
