# SPDX-License-Identifier: GPL-2.0-or-later
"""What is common to both ways into the kernel: the job, its queue limits, and how a backend holds a device.

    hold = ioctl_backend.attach(device, job)      # or netlink_backend.attach
    ...                                           # the device serves, and is claimed for us alone
    hold.commit()                                 # until then it is undone when we fail, stop or are killed

Both raise `Taken` where another task is at work on the device, `Busy` where somebody has it open.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Protocol

from nbdattach.backends.limits import Geometry
from nbdattach.connect_options import Wishes
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.kernel import settings
from nbdattach.kernel.node import Busy, Node
from nbdattach.kernel.sysfs import Kernel
from nbdattach.protocol.export import Export
from nbdattach.protocol.target import Target

# Milliseconds of queue/io_timeout, with several connections: the driver takes a request of this age for a dead
# connection, drops that and sends the request again over another one, though the server may still be at it. Slow is
# not dead, so only a monitor, which replaces what was dropped, makes this shorter.
PATIENT_MS = 7 * 24 * 3600 * 1000
# For the partitions of a device without a server to go.
_CLEAR_SECONDS = 5.0


class Taken(Exception):
    """Another task came first and is setting the device up, or has."""


class Spent(Exception):
    """The kernel took the connections and shut them down again: it takes new ones for another try."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be attached: the same for each device that is tried. `sockets` are descriptors in transmission.

    `contested`: others open and close the device all the time. `tls`: version, cipher and transport.
    """

    tag: str
    target: Target
    export: Export
    shape: Geometry
    sockets: list[int]
    wishes: Wishes
    contested: bool = False
    tls: dict[str, str] | None = None
    relay: int | None = None  # its pid
    address: str | None = None  # at which the target's host was found


class Hold(Protocol):
    """A device that serves, claimed by us, and undone unless it is committed."""

    @property
    def node(self) -> Node: ...

    @property
    def pid(self) -> int | None:
        """Of the process that stays with the attachment, in our own pid namespace."""

    def raise_if_ended(self, within: float) -> None:
        """Raises `ConnectionLost` or `KernelRefused` when it ends in the next `within` seconds."""

    def commit(self) -> None:
        """From now on the attachment outlives us."""

    def abandon(self) -> None:
        """Undoes it; the caller clears the node."""

    def close(self) -> None:
        """Gives back what only we hold; the claim on the node is the caller's."""


def set_queue_limits(device: Device, job: Job, io_timeout_ms: int) -> None:
    """All of them each time: what one attachment sets outlives it. Raises OSError.

    `io_timeout_ms` is for attachments without --io-timeout.
    """
    kernel = Kernel(device)
    with contextlib.suppress(OSError):  # older kernels take it only while the server offers a flush, and then reset it
        kernel.set_queue("write_cache", settings.WRITE_BACK)
    with contextlib.suppress(OSError):
        kernel.set_queue("iostats", 1)  # the monitor tells by the counters whether requests are done
    kernel.set_queue("max_sectors_kb", job.shape.max_sectors_kb)
    kernel.set_queue("io_timeout", job.wishes.whole_io_timeout * 1000 or io_timeout_ms)


def remove_old_partitions(node: Node) -> None:
    """Those of the last server: through one of them a program would reach the new server, at the old place.

    Raises `Busy` while a program has one of them open.
    """
    kernel = Kernel(node.device)
    if kernel.partitions and not kernel.attached:
        node.clear(Deadline(_CLEAR_SECONDS))
        if kernel.partitions:
            raise Busy
