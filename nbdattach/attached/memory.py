# SPDX-License-Identifier: GPL-2.0-or-later
"""Remembers the content of an attached disk in /run/nbdattach, beside the record of the attachment.

Decision that matters: what is remembered is what the device itself showed. A program may give it another content (mkfs,
a partitioning tool, a virtual machine). The kernel then changes the time of the node that the program wrote to, also if
that is a device built on ours; what a file system writes does not change it. So if a server comes back with another
content, we can tell a disk that was made anew from another disk. The ioctls BLKDISCARD and BLKZEROOUT do not change
that time, nor does an iSCSI target: if no file system used the device, what was written may be of such a program.
"""

from __future__ import annotations

import contextlib
import json
import os

from nbdattach import untrusted_json
from nbdattach.attached import state
from nbdattach.attached.state import Record
from nbdattach.attached.users import is_used
from nbdattach.clock import boot_time
from nbdattach.content.marks import Content
from nbdattach.content.same_disk import Since
from nbdattach.device import Device
from nbdattach.immutable import as_dict, immutable
from nbdattach.kernel import unhurried
from nbdattach.kernel.leftovers import CONTENT
from nbdattach.kernel.sysfs import SECTOR, Kernel

# Seconds after which a server's machine has written to its disk what it had in memory, also without a flush.
_SETTLED_SECONDS = 60.0


@immutable
class Moment:
    """How far writing had come before a look.

    `written`: sectors that the device had written or discarded, None if the kernel does not count them; `flushes` that
    it had sent; `touched`: when a program last wrote to one of the nodes of `Kernel.stack`, by its path
    (st_mtime_ns); `at` on the clock of `clock.boot_time`.
    """

    written: int | None
    touched: dict[str, int]
    flushes: int
    at: float
    size: int = 0  # of the device, in bytes

    def is_before_changes(self, now: Moment) -> bool:
        """Whether something may have been written since."""
        return self.written is None or (self.written, self.touched, self.size) != (now.written, now.touched, now.size)


@immutable
class Memory:
    """A look at the disk, when it was, and the attachment that it belongs to, as `attachment_of` says.

    `place`: the server that the device was connected to, as `place_of` says. `moved_at`: the sectors that had been
    written when it was moved there; `moved`: the first look there, None before it; `left`, `left_last`: the last
    look before it left the first, and the last, of the servers that it has left. `used`: whether a file system, or a
    device built on it, used it.
    """

    attachment: str
    content: Content
    moment: Moment
    place: str = ""
    moved: Content | None = None
    moved_at: int | None = None
    used: bool = True
    left: Content | None = None
    left_last: Content | None = None

    def since(self, device: Device, by_others: bool) -> Since:
        """What has happened since that look."""
        before, now, written = self.moment, moment_of(device), None
        if now.written is not None and before.written is not None and now.written >= before.written:
            written = (now.written - before.written) * SECTOR
        settled = now.flushes > before.flushes or now.at - before.at >= _SETTLED_SECONDS
        return Since(
            written,
            by_program=now.touched != before.touched,
            unused=written != 0 and not self.used and not is_used(device),
            by_others=by_others,
            # A request under way may have been carried out, and what was not flushed may have been lost.
            nothing=written == 0 and settled and not Kernel(device).pending,
        )


def moment_of(device: Device) -> Moment:
    kernel = Kernel(device)
    touched = {}
    for path in kernel.stack:
        with contextlib.suppress(OSError):
            touched[path] = os.stat(path).st_mtime_ns
    written = kernel.altered if unhurried.counts_requests(device, otherwise=True) else None
    return Moment(written, touched, kernel.flushes, boot_time(), kernel.size)


def attachment_of(device: Device) -> str:
    """`state.identity_of` as text."""
    return json.dumps(state.identity_of(device))


def place_of(record: Record) -> str:
    """The server in use and its address, as text."""
    return f"{record.uri} {record.address or ''}"


def save(device: Device, memory: Memory) -> None:
    """Raises OSError. One writer: connect, which holds the claim on the device; after it the monitor."""
    state.write(_path(device), as_dict(memory))


def load(device: Device) -> Memory | None:
    """None if nothing is remembered of this very attachment: one of an older release, or the file is broken."""
    try:
        memory = untrusted_json.made_of(Memory, state.content_of(_path(device)))
    except (OSError, ValueError):
        return None
    return memory if memory.attachment == attachment_of(device) else None


def forget(device: Device) -> None:
    with contextlib.suppress(OSError):
        os.unlink(_path(device))


def _path(device: Device) -> str:
    return f"{state.path(device)}{CONTENT}"
