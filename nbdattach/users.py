"""Who uses a device: mounts, swap, and block devices on top of it or of its partitions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nbdattach.device import Device
from nbdattach.errors import DeviceInUse
from nbdattach.sysfs import Kernel, loops_on
from nbdattach.wiretext import plain

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Users:
    """`mounts` are paths; `holders` are names: dm-0, md0, swap."""

    mounts: list[str]
    holders: list[str]

    def __bool__(self) -> bool:
        return bool(self.mounts or self.holders)

    def __str__(self) -> str:
        said = [f"mounted at {plain(path)}" for path in self.mounts]
        said += ["swapped on" if name == "swap" else f"held by {name}" for name in self.holders]
        return ", ".join(said)


def users_of(device: Device) -> Users:
    """All users of the device that can be seen from here; root sees more."""
    kernel = Kernel(device)
    partitions = kernel.partitions
    names = {device.name, *partitions}
    holders = kernel.holders(partitions) + loops_on(names) + (["swap"] if _swapped_on(names) else [])
    return Users(_mounts(set(kernel.numbers(partitions))), holders)


def in_use(device: Device) -> DeviceInUse:
    """The error that says who uses it, where that can be seen."""
    users = str(users_of(device)) or "open exclusively by another program"
    return DeviceInUse(device.path, users, "release it first: umount, swapoff, or stop what holds it")


def _mounts(numbers: set[str]) -> list[str]:
    """Mount points of file systems on these major:minor numbers (proc_pid_mountinfo(5))."""
    found = []
    for line in _lines("/proc/self/mountinfo"):
        fields = line.split(" ")
        if fields[2] in numbers:
            found.append(_OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4]))
    return found


def _swapped_on(names: set[str]) -> bool:
    return any(line.split()[0].removeprefix("/dev/") in names for line in _lines("/proc/swaps")[1:])


def _lines(path: str) -> list[str]:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError:
        return []
