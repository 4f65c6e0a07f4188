# SPDX-License-Identifier: GPL-2.0-or-later
"""The block size of a device of another program, for commands, which must not wait for a dead disk.

It is in /sys/block/nbdN/queue, where a read may wait for a server: `kernel.unhurried` says why. The monitor looks by a
thread, but a command cannot end while one of its threads hangs. So a copy of this process looks.
"""

from __future__ import annotations

from nbdattach.device import Device
from nbdattach.host import copies
from nbdattach.kernel.sysfs import Kernel

# Seconds; the kernel mostly answers at once.
_A_MOMENT = 1.0


def block_size_of(device: Device) -> int | None:
    """In bytes; None if the kernel does not say it now."""
    answer = copies.answer_about(device, _A_MOMENT, lambda: str(Kernel(device).block_size))
    return int(answer) if answer else None
