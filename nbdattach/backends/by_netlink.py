# SPDX-License-Identifier: GPL-2.0-or-later
"""The netlink backend: one message attaches, and no process stays behind.

Decisions that matter:
* The message sets NBD_CFLAG_DISCONNECT_ON_CLOSE, and we hold the node open until the attachment is complete: if connect
  is killed before, the kernel detaches the device. The last step clears the flag. For the milliseconds before we have
  the node open, a guard process detaches the device if connect dies. If other programs open and close the device all
  the time, we do not set the flag, because their close would detach it: then the guard protects the whole time.
* If we opened an idle node, the kernel would refuse the message, so we cannot claim the device before. A lock keeps two
  of our own commands from setting the limits of one device; between us and other programs, the kernel decides.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import threading
from collections.abc import Iterator
from functools import partial

from nbdattach.attached import state
from nbdattach.backends.base import PATIENT_MS, Job, Spent, Taken, remove_old_partitions, set_queue_limits
from nbdattach.connect_options import DEFAULT_ON_LOSS
from nbdattach.connection.kernel_socket import get_ready, make_room, unlimited
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import ConnectionLost, KernelRefused
from nbdattach.host import procfs
from nbdattach.host.copies import Copy
from nbdattach.kernel import guard, netlink, sysfs
from nbdattach.kernel.node import Node
from nbdattach.kernel.sysfs import Kernel, identifier

# The age in seconds at which the driver looks at a request without an answer. With one connection, it sends the request
# again if the connection was replaced meanwhile, and otherwise waits on: a slow server only costs a line in the
# kernel's log. So requests that were in flight when the server died wait at most this long after a reconnect. With
# several connections, the driver takes the connection for dead and sends the request over another one, so there the
# user must choose the age.
RESEND_SECONDS = 3
# If requests are to fail at once (--on-loss fail), the driver can look at those in flight sooner.
_FAIL_SECONDS = 1
# Seconds; the kernel multiplies it by its ticks and keeps it in a long.
MAX_DEAD_CONN_TIMEOUT = 2_000_000
# udev may have a free device open for a moment, and the kernel then calls it busy.
_BRIEFLY_OPEN = 2.0
# Randomised, so as not to run in lockstep with a program that opens and closes the device in a loop.
_POLLS = (0.001, 0.02)


class Claimed:
    """A device attached by netlink. Until `commit`, the kernel detaches it when we close it."""

    pid = None

    def __init__(self, node: Node, family: netlink.Family, job: Job, locks: contextlib.ExitStack) -> None:
        self.node = node
        self._family = family
        self._job = job
        self._locks = locks

    def raise_if_ended(self, within: float) -> None:
        """The kernel does not report a lost connection, but our duplicates show it. Raises `ConnectionLost`."""
        poll = select.poll()
        for number in self._job.sockets:
            poll.register(number, select.POLLRDHUP)
        if poll.poll(within * 1000):
            raise ConnectionLost(self._job.target.uri, "right after the handshake")

    def commit(self) -> None:
        """From now on the attachment outlives us, and waits for its server. Raises `KernelRefused`."""
        patience = dead_conn_timeout(self._job.options.on_loss)
        try:
            self._family.reconfigure(
                self.node.device.index, identifier(self._job.tag), client_flags=0, dead_conn_timeout=patience
            )
        except OSError as error:
            raise KernelRefused.at(self.node.device.path, "NBD_CMD_RECONFIGURE", error.errno or 0) from error

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._family.disconnect(self.node.device.index)
        self._family.close()  # if we have no descriptor left, what else is undone needs this one

    def close(self) -> None:
        self._locks.close()


def attach(device: Device, job: Job) -> Claimed:
    """The device, served and claimed. Raises `Busy`, `Taken`, `Unanswered`, `KernelRefused`, OSError."""
    with contextlib.ExitStack() as locks:
        if not locks.enter_context(state.device_lock(device)):
            raise Taken
        family = locks.enter_context(netlink.Family())
        resend = _io_timeout_ms(job)
        if sysfs.exists(device):  # if not, the message creates it
            _without_old_partitions(device)
            set_queue_limits(device, job, resend)
        node, ours = None, True
        try:
            room = Kernel(device).most_in_flight(job.shape.max_sectors_kb)
            for number in job.sockets:
                get_ready(number, room, job.options.io_timeout if len(job.sockets) > 1 else 0.0)
            locks.enter_context(_guarded(device, job))
            if not Kernel(device).attached:
                state.forget(device)  # so that a monitor does not take the new attachment for the one before
            try:
                _connect(family, device, job)  # an interrupt is raised only after it is done
            except (Taken, KernelRefused):
                ours = False  # it may look like ours, because another command with the same tag was faster
                raise
            node = Node.claim_within(device, Deadline(job.options.connect_timeout))
            # Again: the device may be new, with a longer queue than assumed, or a foreign tool has changed it.
            set_queue_limits(device, job, resend)
            room = Kernel(device).most_in_flight(job.shape.max_sectors_kb)
            for number in job.sockets:
                make_room(number, room)
                unlimited(number)
            if not _is_ours(device, job):
                raise Spent
        except BaseException:
            if ours and _is_ours(device, job):
                with contextlib.suppress(OSError):
                    family.disconnect(device.index)
            if node:
                node.close()
            raise
        return Claimed(node, family, job, locks.pop_all())


def _without_old_partitions(device: Device) -> None:
    """Removes old partitions. Opens the device only if it has any: meanwhile the kernel refuses others' messages."""
    kernel = Kernel(device)
    if kernel.partitions and not kernel.attached:
        with Node.claim(device) as node:
            remove_old_partitions(node)


@contextlib.contextmanager
def _guarded(device: Device, job: Job) -> Iterator[None]:
    """If we are killed inside this context, a guard process sees our pipe close and detaches the device."""
    pid = threading.get_native_id() if procfs.sees_all() else 0  # the sender's pid as the kernel sees it
    theirs, ours = os.pipe()
    try:
        work = partial(guard.guard, theirs, device.path, state.path(device), identifier(job.tag), pid)
        guarding = Copy(work, theirs, name="nbdattach-guard", own_session=True)
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            os.write(ours, b"d")
        os.close(ours)
        guarding.wait()


def _connect(family: netlink.Family, device: Device, job: Job) -> None:
    shape = job.shape
    patience = Deadline(_BRIEFLY_OPEN)
    while True:
        try:
            family.connect(
                device.index,
                size=shape.size,
                block_size=shape.block_size,
                flags=shape.flags,
                sockets=job.sockets,
                dead_conn_timeout=0,  # until the commit, no monitor would reconnect
                timeout=job.options.whole_io_timeout,
                client_flags=0 if job.contested else netlink.NBD_CFLAG_DISCONNECT_ON_CLOSE,
                backend=identifier(job.tag),
            )
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # the kernel had no memory for its answer, so we do not know the outcome
                raise
            if error.errno != errno.EBUSY:
                raise _refused(device, error) from error
            if Kernel(device).attached or not patience.nap(*_POLLS):
                raise Taken from None
        else:
            return


def _io_timeout_ms(job: Job) -> int:
    """The value for queue/io_timeout if the user has given none."""
    if len(job.sockets) > 1:
        return PATIENT_MS  # no monitor is used then (`choice.no_less_safe_than_one`)
    return (_FAIL_SECONDS if job.options.on_loss == 0 else RESEND_SECONDS) * 1000


def dead_conn_timeout(on_loss: float | None) -> int:
    """Whole seconds that the kernel waits for a new connection by itself, in case no monitor runs."""
    seconds = DEFAULT_ON_LOSS if on_loss is None else on_loss
    return math.ceil(min(seconds, MAX_DEAD_CONN_TIMEOUT))


def _is_ours(device: Device, job: Job) -> bool:
    """False if another program detached it: by open and close of the device between the message and our claim."""
    kernel = Kernel(device)
    return kernel.backend == identifier(job.tag).strip() and kernel.size == job.shape.size


def _refused(device: Device, error: OSError) -> KernelRefused:
    hints = {
        errno.EPERM: "attaching needs root (CAP_SYS_ADMIN)",
        errno.EINVAL: "is the number too large for the driver's max_part, or the device going away? see dmesg",
    }
    return KernelRefused.at(device.path, "NBD_CMD_CONNECT", error.errno or 0, hints.get(error.errno or 0, ""))
