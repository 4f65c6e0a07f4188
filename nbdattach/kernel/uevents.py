# SPDX-License-Identifier: GPL-2.0-or-later
"""Events for udev rules: the server of a device was lost, or is connected again.

Decisions that matter:
* The event is one of the device's bdi (/sys/block/nbdN/bdi), not of the disk. At each change event of a disk, udev
  opens and reads it (blkid, LVM, rules of other packages), and would wait for the server that is away; udevadm settle
  waits with it. If our rule made udev skip that, the links in /dev/disk would go, and systemd unmounts file systems
  that need them. No rule reads a disk for its bdi.
* The kernel only accepts letters and digits in arguments (kobject_action_args in lib/kobject_uevent.c). Rules see
  KEY=VALUE as SYNTH_ARG_KEY.
* The write does no I/O and takes no lock of the disk or its queue, so the monitor may do it while requests wait.
"""

from __future__ import annotations

import os

from nbdattach.device import Device
from nbdattach.kernel import sysfs
from nbdattach.text import uuid_text

LOST = "lost"
RECONNECTED = "reconnected"


def send(device: Device, what: str) -> None:
    """Nothing happens if the kernel does not take it, as in a container, where /sys is read-only."""
    event = f"change {uuid_text(os.urandom(16))} NBDATTACH={what} DEVICE={device.name}"
    try:
        fd = os.open(f"{sysfs.SYS}/block/{device.name}/bdi/uevent", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(fd, event.encode())
    except OSError:
        pass
    finally:
        os.close(fd)
