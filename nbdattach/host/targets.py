# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that the kernel itself passes on: as a SCSI target (iSCSI and others), over NVMe, or as a USB device.

One that the SCSI target has as a file ("fileio"), or that is passed on by USB, is open without a claim, so no
claim and no look at processes finds its user. Their settings in configfs name it.
"""

from __future__ import annotations

import os
import re

from nbdattach.host.lookups import numbers_of
from nbdattach.immutable import immutable

CONFIGFS = "/sys/kernel/config"
# Below configfs: the setting, where in it the path is, and the words for its user.
_KINDS = (
    # drivers/target: "File: PATH  Size: …" of fileio, "UDEV PATH: PATH  readonly: …" of iblock, and its number
    ("target/core/*/*/info", r"(?:File|UDEV PATH): (.*?)  (?:Size|readonly): ", "the kernel's SCSI target"),
    ("nvmet/subsystems/*/namespaces/*/device_path", r"(.+)", "the kernel's NVMe target"),
    ("usb_gadget/*/functions/mass_storage.*/lun.*/file", r"(.+)", "the kernel's USB storage"),
)


@immutable
class Target:
    """A disk that is passed on."""

    path: str  # of the disk, as it was given to the kernel
    by: str  # for people
    place: str  # of its settings
    number: str = ""  # major:minor; empty if only the path is known


def targets() -> list[Target]:
    """Those of this host. Without root there may be none to see."""
    found = []
    for pattern, path, by in _KINDS:
        # Mostly there is no such target, and then this is one look.
        if os.path.isdir(f"{CONFIGFS}/{pattern.partition('/')[0]}"):
            import glob

            for setting in glob.glob(f"{CONFIGFS}/{pattern}"):
                place = os.path.dirname(setting)
                text = _text(setting)
                match, number = re.search(path, text), re.search(r"Major: (\d+) Minor: (\d+)", text)
                if match and _text(f"{place}/enable").strip() != "0":  # else it is named, and not open
                    found.append(Target(match[1].strip(), by, place, ":".join(number.groups()) if number else ""))
    return found


def by_number(below: str = "/") -> dict[str, list[Target]]:
    """By the number of the block device (major:minor). Only files `below` that folder are looked at."""
    known = targets()
    unknown = [target for target in known if not target.number and target.path.startswith(below)]
    by_path = dict(zip(unknown, numbers_of([target.path for target in unknown]), strict=True))
    found: dict[str, list[Target]] = {}
    for target in known:
        number = target.number or by_path.get(target)
        if number:
            found.setdefault(number, []).append(target)
    return found


def _text(path: str) -> str:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
