# SPDX-License-Identifier: GPL-2.0-or-later
"""Refuses to attach for writing what is attached for writing on this host already.

Two file systems mounted from one disk, each with its own cache, destroy each other. An export is the same if the name
of its server is the same, or the address that the name led to; another host that has attached it cannot be seen.
"""

from __future__ import annotations

import os

from nbdattach.attached import state
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, NbdattachError
from nbdattach.kernel import sysfs
from nbdattach.kernel.sysfs import Kernel
from nbdattach.protocol.target import Target, parse_target


def name_of(target: Target, export: str, address: str | None) -> str:
    """The same for two targets if `refuse` may find one for the other; for a lock."""
    server = _real(target.socket) or f"{address or target.host}:{target.port}"
    return f"\0export {server}/{export}"


def refuse(target: Target, export: str, address: str | None) -> None:
    """Raises `DeviceInUse` if a device holds that export read-write. `address`: the server's numeric one."""
    for device in sysfs.devices():
        kernel = Kernel(device)
        if kernel.attached and not kernel.read_only and _holds(device, target, export, address):
            raise DeviceInUse(
                target.uri,
                f"attached read-write at {device.path} already; two file systems that write to one disk destroy it",
                f"use {device.path}, or attach it with --read-only, or with --shared if its users know of each other",
            )


def _holds(device: Device, target: Target, export: str, address: str | None) -> bool:
    record = state.load(device)
    if record is None or record.server or record.export != export:
        return False
    try:
        there = parse_target(record.using or record.target)
    except NbdattachError:  # of another version
        return False
    if target.socket or there.socket:
        return _real(target.socket) == _real(there.socket)
    same_host = target.host == there.host or (address is not None and address == record.address)
    return same_host and target.port == there.port


def _real(path: str) -> str:
    return path and os.path.realpath(path)
