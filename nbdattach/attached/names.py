# SPDX-License-Identifier: GPL-2.0-or-later
"""What users call an attached device: its node, any path that leads to it, and by mistake its mount point or its tag.

No file of a disk is opened or looked at, because its server may be away: a mount point is known by its path.
"""

from __future__ import annotations

import os
import stat

from nbdattach.attached import tags
from nbdattach.attached.mounts import mounts_here
from nbdattach.device import Device, parse_device, whole_device
from nbdattach.errors import Malformed, NbdattachError, NotAttached
from nbdattach.host import procfs
from nbdattach.kernel import sysfs
from nbdattach.text import quoted

# Where our udev rules make a link for each tag.
LINKS = "/dev/disk/by-nbd/"


def device_at(text: str) -> Device:
    """The device that the text names: nbd0, or a path. Raises `Malformed`, `NotAttached`."""
    found = find(text)
    if found:
        return found
    if there := tagged(text):
        raise Malformed(quoted(text), f"no device, but the tag of {there.path}", f"name the device: {there.path}")
    return parse_device(text)  # which says why it is none


def find(text: str) -> Device | None:
    """None if the text may mean something else. Raises `Malformed` for a part of a device, or its mount point."""
    try:
        return parse_device(text)
    except Malformed:
        if whole_device(text):
            raise
    return _at_path(text) if "/" in text else None


def tagged(text: str) -> Device | None:
    """A device that has this tag, as far as we may see that."""
    try:
        there = tags.attached_as(tag=text)
    except NbdattachError:
        return None
    return there[0] if there else None


def _at_path(text: str) -> Device | None:
    path = os.path.abspath(text)
    for mount in reversed(mounts_here()):
        if mount.path == path and (name := sysfs.name_at(mount.number)):
            device = f"/dev/{whole_device(name) or name}"
            raise Malformed(quoted(text), f"{device} is mounted there", f"name the device: {device}")
    try:
        found = os.stat(path)
    except OSError:
        if path.startswith(LINKS):
            raise NotAttached(path) from None
        return None
    if not stat.S_ISBLK(found.st_mode):
        return None
    name = sysfs.name_at(procfs.major_minor(found.st_rdev))
    return None if name is None else parse_device(f"/dev/{name}")
