# SPDX-License-Identifier: GPL-2.0-or-later
"""The devices that an export may be attached at: the one that the user names, or any free one."""

from __future__ import annotations

import os
from collections.abc import Iterator

from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, KernelRefused, NbdattachError
from nbdattach.kernel import sysfs
from nbdattach.kernel.sysfs import Kernel
from nbdattach.protocol.export import Export

# New device numbers to try, because other programs may make devices at the same time.
_MAX_NEW = 256


def to_try(device: Device | None, export: Export, makes_devices: bool) -> Iterator[Device]:
    """Devices to try: the one named, or every free one, then new ones if the backend `makes_devices`."""
    if device:
        if _is_spoilt(device, export):
            raise KernelRefused(
                device.path,
                "another program made it send NBD_CMD_WRITE_ZEROES, which this server does not support",
                "use another device, or reload the driver: modprobe -r nbd; modprobe nbd",
            )
        yield device
        return
    there = sysfs.devices()
    for free in there:
        kernel = Kernel(free)
        if not (kernel.attached or kernel.size or _is_spoilt(free, export)) and os.path.exists(free.path):
            yield free
    if makes_devices:
        first = there[-1].index + 1 if there else 0
        yield from (Device(index) for index in range(first, first + _MAX_NEW))


def _is_spoilt(device: Device, export: Export) -> bool:
    return not export.takes_write_zeroes and Kernel(device).sends_write_zeroes


def none_free(device: Device | None, makes_devices: bool) -> NbdattachError:
    if device:
        return DeviceInUse(device.path, "another program has it open or is attaching it", "see nbdattach status")
    there = sysfs.devices()
    if not any(os.path.exists(one.path) for one in there):
        cause = f"/dev has no node of the {len(there)} devices of the kernel"
        return KernelRefused("nbd", cause, "in a container, pass devices in; elsewhere udevadm trigger makes the nodes")
    hint = "nbdattach status shows them"
    if not makes_devices:  # nbds_max of modprobe has no effect on a driver that is loaded
        hint += "; --backend netlink makes more devices by itself"
    return DeviceInUse("nbd", f"all {len(there)} devices are in use", hint)
