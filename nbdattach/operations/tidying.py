# SPDX-License-Identifier: GPL-2.0-or-later
"""What is left of an attachment while a program has its device open: a process of its own removes it later."""

from __future__ import annotations

import contextlib

from nbdattach.attached import state
from nbdattach.device import Device
from nbdattach.host import systemd
from nbdattach.host.spawn import bare_python, start_aside


def tidy_up_later(device: Device, pid: int | None) -> None:
    """Starts a process that waits for the last user to go and removes the partitions, because the kernel keeps them.

    `pid` is the kernel's for the attachment that has ended.
    """
    command = bare_python("kernel.leftovers", "tidy_main", device.path, state.path(device), str(pid or ""))
    with contextlib.suppress(OSError):
        systemd.give_scope(start_aside(command, own_session=True).pid, "nbdattach-tidy")
