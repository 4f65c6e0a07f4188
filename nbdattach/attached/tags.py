# SPDX-License-Identifier: GPL-2.0-or-later
"""Attachments by the tag or the target that they were made for."""

from __future__ import annotations

from nbdattach.attached import state
from nbdattach.device import Device
from nbdattach.kernel import sysfs
from nbdattach.kernel.sysfs import Kernel, identifier


def tag_of(device: Device) -> str | None:
    """The tag of the attachment at the device; None if it has none, or has ended."""
    record = state.load(device)
    return record.tag if record else None if state.end_of(device) else Kernel(device).backend


def has_tag(device: Device, tag: str) -> bool:
    """Whether the attachment has this tag; if we have no record, by the part of a tag that the kernel keeps.

    So that one that has ended, and that a program keeps, still has it.
    """
    record = state.load(device)
    return record.tag == tag if record else Kernel(device).backend == identifier(tag).strip()


def attached_as(*, tag: str | None = None, target: str | None = None) -> list[Device]:
    """Devices with an attachment of this tag, or with that server. Raises `KernelRefused` without permission."""
    state.refuse_hidden()
    found = []
    for device in sysfs.devices():
        if Kernel(device).attached and not state.end_of(device):
            record = state.load(device)
            if (tag is not None and has_tag(device, tag)) or (
                target is not None and record is not None and target in (record.target, *record.also)
            ):
                found.append(device)
    return found
