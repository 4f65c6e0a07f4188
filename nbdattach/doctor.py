"""What stands in the way of attaching on this machine, each with its remedy as a command. Changes nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from nbdattach import driver, process, sysfs, udev
from nbdattach.device import Device
from nbdattach.errors import KernelRefused
from nbdattach.status import status_of
from nbdattach.sysfs import Kernel


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `stands_in_the_way` is False for what is good, and for what is only worth knowing."""

    subject: str
    says: str
    stands_in_the_way: bool = False
    remedy: str = ""


def examine() -> list[Finding]:
    """All findings, in the order in which one would mend them."""
    driver.refuse_other_systems()
    found = [_permission(), _driver()]
    if sysfs.driver_loaded():
        found += [_node(), _partitions(), *_wedged()]
    return [*found, _udev()]


def _permission() -> Finding:
    if process.is_root():
        return Finding("permission", "running as root")
    return Finding("permission", "not root, so nothing can be attached or detached", True, "sudo nbdattach ...")


def _driver() -> Finding:
    if sysfs.driver_loaded():
        return Finding("driver", f"loaded, {len(sysfs.devices())} devices")
    try:
        known = driver.modprobe("--dry-run", "nbd")
        if known.returncode == 0:
            return Finding("driver", "not loaded yet; connect loads it")
        reason = driver.why_not(known.stderr)
    except KernelRefused as refused:
        reason = refused
    return Finding("driver", reason.cause, True, reason.hint)


def _node() -> Finding:
    first = next(iter(sysfs.devices()), Device(0))
    try:
        there = stat.S_ISBLK(os.stat(first.path).st_mode)
    except OSError:
        there = False
    if there:
        return Finding("nodes", f"{first.path} is a block device")
    return Finding(
        "nodes",
        f"{first.path} is no block device, though the driver is loaded",
        True,
        "mount -t devtmpfs devtmpfs /dev, or pass the device into this container",
    )


def _partitions() -> Finding:
    if sysfs.max_part() == 0:
        remedy = "modprobe -r nbd; modprobe nbd max_part=16"
        return Finding("partitions", "the driver was loaded with max_part=0 and finds no partitions", True, remedy)
    return Finding("partitions", f"up to {sysfs.max_part() or 'an unknown number of'} a device")


def _wedged() -> Iterator[Finding]:
    """Devices that hold something nobody serves any more."""
    for device in sysfs.devices():
        kernel = Kernel(device)
        pid = kernel.pid
        remedy = f"stop what uses it, then: nbdattach disconnect {device.path}"
        if pid is None and kernel.size:
            yield Finding(device.path, f"{kernel.size} bytes, but nothing is attached", True, remedy)
        elif pid is not None and status_of(device).state == "lost":
            yield Finding(device.path, f"lost: nobody serves it any more (its process was {pid})", True, remedy)


def _udev() -> Finding:
    if udev.running():
        return Finding("udev", "running")
    return Finding("udev", "not running: devices work, links in /dev/disk do not appear")
