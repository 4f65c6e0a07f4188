# SPDX-License-Identifier: GPL-2.0-or-later
"""The netlink backend: one message attaches, and no process stays behind.

Decisions that matter:
* The message says NBD_CFLAG_DISCONNECT_ON_CLOSE, and we hold the node open until the attachment is complete: a connect
  that is killed before takes the attachment with it. The last step takes the flag away. For the milliseconds before we
  have the node there is a guard, a process that undoes what a dead connect left. It serves for all of the time where
  the flag cannot: others who close the device before we have it would take it down.
* To open an idle node is to make the kernel refuse the message, so the device cannot be claimed before. A lock among
  our own commands keeps two of them from setting the limits of one device; against others the kernel decides.
"""

from __future__ import annotations

import contextlib
import errno
import math
import random
import select
import subprocess
import threading
from collections.abc import Iterator

from nbdattach.attached import state
from nbdattach.backends.base import PATIENT_MS, Job, Spent, Taken, remove_old_partitions, set_queue_limits
from nbdattach.connect_options import DEFAULT_ON_LOSS
from nbdattach.connection.kernel_socket import get_ready, unlimited
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import ConnectionLost, KernelRefused
from nbdattach.host import procfs
from nbdattach.host.spawn import bare_python
from nbdattach.kernel import netlink, sysfs
from nbdattach.kernel.node import Node
from nbdattach.kernel.sysfs import Kernel, identifier

# The age at which the driver looks at a request without an answer, in seconds. With one connection it sends it again
# where the connection was replaced meanwhile, and else waits on: a slow server costs a line in the kernel's log, and
# nothing else. So this is what requests that were in flight when the server died wait at most after a reconnect. With
# several connections it takes the connection for dead and sends the request over another one: so there the user says
# the age, and not we.
RESEND_SECONDS = 3
# Where requests are to fail at once, those in flight can as well be looked at sooner.
_FAIL_SECONDS = 1
# Seconds; the kernel multiplies it by its ticks and keeps it in a long.
MAX_DEAD_CONN_TIMEOUT = 2_000_000
# udev may have a free device open for a moment, and the kernel then calls it busy.
_BRIEFLY_OPEN = 2.0
# In no step with a program that opens and closes it in a loop.
_POLLS = (0.001, 0.02)


class Claimed:
    """A device attached by netlink that goes when we close it, until `commit`."""

    pid = None

    def __init__(self, node: Node, family: netlink.Family, job: Job, locks: contextlib.ExitStack) -> None:
        self.node = node
        self._family = family
        self._job = job
        self._locks = locks

    def raise_if_ended(self, within: float) -> None:
        """The kernel tells nobody; but our own end of the connections shows it. Raises `ConnectionLost`."""
        poll = select.poll()
        for number in self._job.sockets:
            poll.register(number, select.POLLRDHUP)
        if poll.poll(within * 1000):
            raise ConnectionLost(self._job.target.uri, "right after the handshake")

    def commit(self) -> None:
        """From now on the attachment outlives us, and waits for its server. Raises `KernelRefused`."""
        patience = dead_conn_timeout(self._job.wishes.on_loss)
        try:
            self._family.reconfigure(
                self.node.device.index, identifier(self._job.tag), client_flags=0, dead_conn_timeout=patience
            )
        except OSError as error:
            raise KernelRefused.at(self.node.device.path, "NBD_CMD_RECONFIGURE", error.errno or 0) from error

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._family.disconnect(self.node.device.index)

    def close(self) -> None:
        self._locks.close()


def attach(device: Device, job: Job) -> Claimed:
    """The device, served and claimed. Raises `Busy`, `Taken`, `Unanswered`, `KernelRefused`, OSError."""
    with contextlib.ExitStack() as locks:
        if not locks.enter_context(state.device_lock(device)):
            raise Taken
        family = locks.enter_context(netlink.Family())
        resend = _io_timeout_ms(job)
        if sysfs.exists(device):  # else the message makes it
            _without_old_partitions(device)
            set_queue_limits(device, job, resend)
        node, ours = None, True
        try:
            room = Kernel(device).most_in_flight(job.shape.max_sectors_kb)
            for number in job.sockets:
                get_ready(number, room, job.wishes.io_timeout if len(job.sockets) > 1 else 0.0)
            locks.enter_context(_guarded(device, job))
            try:
                _connect(family, device, job)  # an interrupt is told only after it is done
            except (Taken, KernelRefused):
                ours = False  # though it may look so: another command, of the same tag, was faster
                raise
            node = Node.claim_within(device, Deadline(job.wishes.connect_timeout))
            set_queue_limits(device, job, resend)  # a new one, or a foreign tool was at it
            for number in job.sockets:
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
    """To open the device makes the kernel refuse the message of another program, so only where there are any."""
    kernel = Kernel(device)
    if kernel.partitions and not kernel.attached:
        with Node.claim(device) as node:
            remove_old_partitions(node)


@contextlib.contextmanager
def _guarded(device: Device, job: Job) -> Iterator[None]:
    """Should we be killed meanwhile, a process that reads the end of our pipe undoes what we did."""
    pid = threading.get_native_id() if procfs.sees_all() else 0  # the kernel's name for who sends
    command = bare_python("guard_main", device.path, state.path(device), identifier(job.tag), str(pid))
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as guard:
        try:
            yield
        finally:
            with contextlib.suppress(BrokenPipeError):
                guard.communicate(b"done")


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
                dead_conn_timeout=0,  # until the commit nobody would reconnect
                timeout=job.wishes.whole_io_timeout,
                client_flags=0 if job.contested else netlink.NBD_CFLAG_DISCONNECT_ON_CLOSE,
                backend=identifier(job.tag),
            )
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # the kernel had no memory for its answer, whatever that was
                raise
            if error.errno != errno.EBUSY:
                raise _refused(device, error) from error
            if Kernel(device).attached or not patience.sleep(random.uniform(*_POLLS)):  # noqa: S311 - no secret
                raise Taken from None
        else:
            return


def _io_timeout_ms(job: Job) -> int:
    """For queue/io_timeout, where the user has given no time."""
    if len(job.sockets) > 1:
        return PATIENT_MS  # and no monitor (`choice.no_less_safe_than_one`)
    return (_FAIL_SECONDS if job.wishes.on_loss == 0 else RESEND_SECONDS) * 1000


def dead_conn_timeout(on_loss: float | None) -> int:
    """Whole seconds for the kernel, which waits by itself while no monitor is there to know better."""
    seconds = DEFAULT_ON_LOSS if on_loss is None else on_loss
    return math.ceil(min(seconds, MAX_DEAD_CONN_TIMEOUT))


def _is_ours(device: Device, job: Job) -> bool:
    """Whoever opens and closes the device between the message and our claim has taken it down again."""
    kernel = Kernel(device)
    return kernel.backend == identifier(job.tag).strip() and kernel.size == job.shape.size


def _refused(device: Device, error: OSError) -> KernelRefused:
    hints = {
        errno.EPERM: "attaching needs root (CAP_SYS_ADMIN)",
        errno.EINVAL: "is the number too large for the driver's max_part, or the device going away? see dmesg",
    }
    return KernelRefused.at(device.path, "NBD_CMD_CONNECT", error.errno or 0, hints.get(error.errno or 0, ""))
