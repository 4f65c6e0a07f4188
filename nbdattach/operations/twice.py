# SPDX-License-Identifier: GPL-2.0-or-later
"""Refuses to attach for writing, or to move a device to, what is attached for writing on this host already.

Two file systems mounted from one disk, each with its own cache, destroy each other. An export is the same if the name
of its server is the same, or an address that the name has; another host that has attached it cannot be seen. A name may
have an IPv4 and an IPv6 address of one server, and the monitor may go to each of them by itself. All addresses of this
host count as one, because a server mostly listens at each: 127.0.0.1, ::1, that of a network card.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from nbdattach.attached import state
from nbdattach.attached.state import Record
from nbdattach.connection.stream import addresses_of, is_here
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, NbdattachError
from nbdattach.kernel import sysfs
from nbdattach.protocol.target import Target, parse_target

# Seconds for all addresses of all names.
_LOOKUP = 3.0
_LOOPBACK, _HERE = ("localhost", "127.0.0.1", "::1"), "this host"
_MAPPED = "::ffff:"


_Export = tuple[Target, str, list[str]]  # with the server's addresses


class Wanted:
    """The export that a device is to have, and those of `also`, which have the same data.

    `address`: the server's numeric one, by which it is known even if its name cannot be looked up; None if a relay has
    the connection, or none is made yet.
    """

    def __init__(self, target: Target, export: str, address: str | None, also: Sequence[Target] = ()) -> None:
        patience = Deadline(_LOOKUP)
        wanted = [(target, export, address), *((one, one.export, None) for one in also)]  # the one reached first
        self._exports: list[_Export] = [(one, name, _addresses(one, known, patience)) for one, name, known in wanted]
        self._target = target
        self._left = patience.remaining()  # for the names of devices, after a wait for the locks

    @property
    def names(self) -> list[str]:
        """For locks, in the order to take them. Two commands have one in common if `refuse` finds one for the other."""
        return sorted(f"export {name}/{one[1]}" for one in self._exports for name in _names(one[0], one[2]))

    def refuse(self, *, moving: Device | None = None) -> None:
        """Raises `DeviceInUse` if a device holds one of them read-write. `moving`: the device that is to go there."""
        patience = Deadline(self._left)
        for device in sysfs.devices():
            if device != moving and _holds(device, self._exports, patience):
                cause = (
                    f"attached read-write at {device.path} already; two file systems that write to one disk destroy it"
                )
                hint = (
                    f"nbdattach disconnect {device.path}, or use --shared if its users know of each other"
                    if moving
                    else f"use {device.path}, or attach it with --read-only, "
                    "or with --shared if its users know of each other"
                )
                raise DeviceInUse(self._target.uri, cause, hint)


def _holds(device: Device, exports: Sequence[_Export], patience: Deadline) -> bool:
    record = state.load(device)
    if record is None or record.read_only:
        return False
    for target, export, address in _held(record):
        same = [one for one in exports if one[1] == export]
        if same:  # otherwise no name server is asked for it: there may be hundreds of devices
            names = _names(target, _addresses(target, address, patience))
            if any(not names.isdisjoint(_names(one[0], one[2])) for one in same):
                return True
    return False


def _held(record: Record) -> Iterator[tuple[Target, str, str | None]]:
    """What it is attached to, with the address if that is known, and where it may go by itself."""
    for uri in dict.fromkeys((record.uri, record.using or record.target, *(record.others if record.also else ()))):
        try:
            target = parse_target(uri)
        except NbdattachError:  # of another version
            continue
        if uri == record.uri:
            yield target, record.export, record.address
        else:
            yield target, target.export, None


def _addresses(target: Target, address: str | None, patience: Deadline) -> list[str]:
    if target.socket:
        return []
    return [*([address] if address else []), *addresses_of(target, patience)]


def _names(target: Target, addresses: Sequence[str]) -> set[str]:
    """Of the server: two that have one in common are the same."""
    if target.socket:
        return {os.path.realpath(target.socket), *_file_of(target.socket)}
    return {f"{_one_name(host)}:{target.port}" for host in (target.host, *addresses)}


def _file_of(socket: str) -> list[str]:
    """The socket itself, which a hard link or a bind mount shows under another path, too; none if it is gone."""
    try:
        there = os.stat(socket)
    except OSError:
        return []
    return [f"file {there.st_dev}:{there.st_ino}"]


def _one_name(host: str) -> str:
    """Of a host name or a numeric address. Another address of 127.0.0.0/8 may well be that of a server of its own."""
    plain = host.lower().removesuffix(".").removeprefix(_MAPPED)
    return _HERE if plain in _LOOPBACK or (not plain.startswith("127.") and is_here(plain)) else plain
