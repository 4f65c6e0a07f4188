# SPDX-License-Identifier: GPL-2.0-or-later
"""What connect tells the user beside the device: notes about an attachment that is not quite what one would expect."""

from __future__ import annotations

import os

from nbdattach.backends import choice, durability
from nbdattach.backends.base import Job
from nbdattach.backends.limits import Geometry
from nbdattach.connect_options import ConnectOptions
from nbdattach.connection.kernel_socket import has_room
from nbdattach.content.reading import run
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import Refused
from nbdattach.kernel.node import Node
from nbdattach.kernel.sysfs import Kernel
from nbdattach.protocol.export import Export
from nbdattach.protocol.target import Target
from nbdattach.text import plain, typed

# Each partition table has it at the end of the first sector, the protective one of a GPT too.
_TABLE = b"\x55\xaa"


def on_export(target: Target, options: ConnectOptions, export: Export, shape: Geometry) -> list[str]:
    """Of what the server offers. Raises `Refused` if the user insists on writing, and cannot."""
    notes = _why_read_only(target, options, shape)
    if target.tls:
        from nbdattach.connection import credentials

        for key in credentials.exposed(target):
            notes.append(f"warning: every user can read or write the key {plain(key)}: chmod go= {typed(key)}")
    lacks = (shape.lack, durability.lack_of_flush(export, shape.read_only))
    return notes + [f"{target.uri}: {lack}" for lack in lacks if lack]


def _why_read_only(target: Target, options: ConnectOptions, shape: Geometry) -> list[str]:
    """If the device is read-only without the user's word."""
    if options.read_only or not shape.read_only:
        return []
    if options.read_write:
        raise Refused(target.uri, "the server offers it read-only", "leave out --read-write to attach it so")
    if options.server and options.server.image:
        return []  # told when its server was started
    return [f"{target.uri}: the server offers it read-only, and so is the device"]


def on_block_size(node: Node, job: Job, first_page: bytes, deadline: Deadline) -> list[str]:
    """If the partition table was made for another block size. Raises `Unanswered`."""
    if first_page[510:512] != _TABLE:
        return []
    # The modules that know file systems; most disks have no table.
    from nbdattach.content import other_block_size

    block, path = job.shape.block_size, node.device.path
    try:
        made_for = run(other_block_size.look(job.shape.size, block), lambda ranges: node.read(ranges, deadline))
    except OSError:
        return []
    if made_for is None:
        return []
    least = job.export.block_size.minimum if job.export.block_size else made_for
    way = f"--block-size {made_for} attaches it right" if made_for >= least else ""
    way = way or f"losetup -fP --sector-size {made_for} {path} makes a device with the right ones"
    says = f"its partition table is for blocks of {made_for} bytes, but the device has blocks of {block}"
    return [f"{path}: {says}: its partitions are in wrong places, do not write to them; {way}"]


def on_nodes(device: Device) -> list[str]:
    """If partitions have no node, as in a container."""
    missing = [path for path in Kernel(device).paths if not os.path.exists(path)]
    return [f"{', '.join(missing)}: the kernel has it, but /dev has no node for it"] if missing else []


def on_room(device: Device, backend: choice.Backend, job: Job) -> list[str]:
    """If a send may have to wait for the server (`kernel_socket.make_room`)."""
    room = Kernel(device).most_in_flight(job.shape.max_sectors_kb)
    if backend.name != "netlink" or all(has_room(number, room) for number in job.sockets):
        return []
    return [
        f"{device.path}: without CAP_NET_ADMIN send buffers stay small: on Linux 6.13 and later a write may fail if its"
        " program gets a signal just before the server dies"
    ]


def on_backend(device: Device, backend: choice.Backend, options: ConnectOptions) -> list[str]:
    """If no monitor can reconnect the device, and nobody has said that it need not."""
    if not (backend.lost and options.reconnect):
        return []
    return [f"{device.path}: nobody will reconnect this device: {backend.lost} ({backend.lost.hint})"]
