# SPDX-License-Identifier: GPL-2.0-or-later
"""The block size of a device of another program, for commands, which must not wait for a dead disk.

It is in /sys/block/nbdN/queue, where a read may wait for a server: `kernel.unhurried` says why. The monitor looks by a
thread, but a command cannot end while one of its threads hangs. So a copy of this process looks.
"""

from __future__ import annotations

from nbdattach.device import Device
from nbdattach.host.copies import Question
from nbdattach.kernel.sysfs import Kernel

# Seconds; the kernel mostly answers at once.
_A_MOMENT = 1.0
# The last question about a device, if it has not been answered: no other one hangs beside it.
_unanswered: dict[Device, Question] = {}


def block_size_of(device: Device) -> int | None:
    """In bytes; None if the kernel does not say it now."""
    if device in _unanswered and _unanswered[device].hangs:
        return None
    question = Question(lambda: str(Kernel(device).block_size))
    answer = question.answer(_A_MOMENT)
    if answer is None:
        _unanswered[device] = question
    return int(answer) if answer else None
