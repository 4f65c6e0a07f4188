# SPDX-License-Identifier: GPL-2.0-or-later
"""The common part of both backends: the job, its queue limits, and how a backend holds a device.

    hold = ioctl_backend.attach(device, job)      # or netlink_backend.attach
    ...                                           # the device serves, and is claimed for us alone
    hold.commit()                                 # until then it is undone if we fail, stop or are killed

Both raise `Taken` if another process is attaching at the device, `Busy` if a process has it open.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

from nbdattach.backends import queue_choice
from nbdattach.backends.limits import Geometry
from nbdattach.connect_options import ConnectOptions
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.immutable import immutable
from nbdattach.kernel import settings
from nbdattach.kernel.node import Busy, Node
from nbdattach.kernel.sysfs import Kernel
from nbdattach.protocol.export import Export
from nbdattach.protocol.target import Target
from nbdattach.tls_session import TlsSession

# queue/io_timeout in milliseconds, for several connections: if a request reaches this age, the driver takes its
# connection for dead, drops it and sends the request again over another one, though the server may still work on it.
# A slow server is not dead, so only a monitor, which replaces dropped connections, makes this shorter.
PATIENT_MS = 7 * 24 * 3600 * 1000
# Seconds to remove the partitions of a device without a server.
_CLEAR_SECONDS = 5.0


class Taken(Exception):
    """Another process came first: it is attaching at the device, or has attached."""


class Spent(Exception):
    """The kernel took the connections and shut them down again, so another try needs new ones."""


@immutable
class Job:
    """The attachment to make, the same for each device that we try. `sockets` are descriptors in transmission.

    `contested`: other programs open and close the device all the time.
    """

    tag: str
    target: Target
    export: Export
    shape: Geometry
    sockets: list[int]
    options: ConnectOptions
    contested: bool = False
    tls: TlsSession | None = None
    relay: int | None = None  # its pid
    address: str | None = None  # of the target's host, as resolved
    using: str = ""  # the URI of the server, if it is one of --also


class Hold(Protocol):
    """An attached device that we have claimed. It is detached again unless we commit."""

    @property
    def node(self) -> Node: ...

    @property
    def pid(self) -> int | None:
        """The pid, in our own pid namespace, of the process that stays with the attachment."""

    def raise_if_ended(self, within: float) -> None:
        """Raises `ConnectionLost` or `KernelRefused` if the attachment ends in the next `within` seconds."""

    def commit(self) -> None:
        """From now on the attachment outlives us."""

    def abandon(self) -> None:
        """Detaches; the caller clears the node."""

    def close(self) -> None:
        """Releases locks and descriptors; the caller releases the claim on the node."""


def set_queue_limits(device: Device, job: Job, io_timeout_ms: int) -> None:
    """Sets all limits each time, because those of an earlier attachment outlive it. Raises OSError, `KernelRefused`.

    `io_timeout_ms` is for attachments without --io-timeout.
    """
    kernel = Kernel(device)
    queue_choice.set_scheduler(device, job.options.scheduler)
    with contextlib.suppress(OSError):  # older kernels accept it only if the server offers flush, and then reset it
        kernel.set_queue("write_cache", settings.WRITE_BACK)
    with contextlib.suppress(OSError):
        kernel.set_queue("iostats", 1)  # the monitor reads the counters to see whether requests are done
    kernel.set_queue("max_sectors_kb", job.shape.max_sectors_kb)
    kernel.set_queue("io_timeout", job.options.whole_io_timeout * 1000 or io_timeout_ms)


def remove_old_partitions(node: Node) -> None:
    """Removes partitions of the last server: a program could write through them to wrong offsets of the new server.

    Raises `Busy` if a program has one of them open.
    """
    kernel = Kernel(node.device)
    if kernel.partitions and not kernel.attached:
        node.clear(Deadline(_CLEAR_SECONDS))
        if kernel.partitions:
            raise Busy
