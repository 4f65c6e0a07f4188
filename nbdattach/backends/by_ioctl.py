# SPDX-License-Identifier: GPL-2.0-or-later
"""The ioctl backend: starts the worker process that keeps the device, and waits until the kernel serves it.

The module `worker` has the worker's side, and the messages between the two.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import subprocess
import sys

from nbdattach.attached import state
from nbdattach.backends.base import PATIENT_MS, Job, Taken, remove_old_partitions, set_queue_limits
from nbdattach.connection.kernel_socket import drop_at_close
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import ConnectionLost, KernelRefused, NbdattachError
from nbdattach.host import systemd
from nbdattach.host.procfs import asleep
from nbdattach.host.spawn import bare_python, environment
from nbdattach.kernel import worker
from nbdattach.kernel.node import Node
from nbdattach.kernel.sysfs import Kernel
from nbdattach.text import plain

# Time until the kernel serves the device; it needs milliseconds, on an emulated machine a second.
START_SECONDS = 30
_POLL = 0.002
_MAX_REPORT = 4096
# The kernel's own default: with one connection, a request of this age only causes a line in the kernel's log.
_IO_TIMEOUT_MS = 30_000
_CLEAR_SECONDS = 5.0


def attach(device: Device, job: Job) -> Worker:
    """The device, claimed and served. Raises `Busy`, `Taken`, `KernelRefused`, `ConnectionLost`, OSError."""
    node = Node.claim(device)
    try:
        remove_old_partitions(node)
        # NBD_SET_SOCK decides between us and foreign tools: the second process gets EBUSY.
        started = Worker.start(node, job)
        try:
            # Before go(): as soon as the kernel serves the device, a program may read from it.
            set_queue_limits(device, job, PATIENT_MS if len(job.sockets) > 1 else _IO_TIMEOUT_MS)
            started.go()
        except BaseException:
            started.abandon()
            node.clear(Deadline(_CLEAR_SECONDS))
            raise
    except BaseException:
        node.close()
        raise
    return started


class Worker:
    """A started worker. Until `commit` it undoes everything if we close our end of the pipe or die."""

    def __init__(self, node: Node, orders: int, reports: int) -> None:
        self.node = node
        self.pid = 0  # in our own namespace; the kernel may know it by another number
        self._device = node.device
        self._orders = orders
        self._reports = reports

    @classmethod
    def start(cls, node: Node, job: Job) -> Worker:
        """Sets the device up; it does not serve yet. Raises `Taken`, `KernelRefused` with the step that failed."""
        their_orders, orders = os.pipe()
        reports, their_reports = os.pipe()
        started = cls(node, orders, reports)
        shape, device = job.shape, node.device
        numbers = (
            shape.block_size,
            shape.blocks,
            shape.flags,
            job.options.whole_io_timeout,
            their_orders,
            their_reports,
            job.options.dead_peer,
            *job.sockets,
        )
        words = [device.path, state.path(device), "swap" if job.options.swap else "", *map(str, numbers)]
        try:
            for number in job.sockets:
                drop_at_close(number)
            try:
                process = subprocess.Popen(
                    bare_python("kernel.worker", "main", *words),
                    pass_fds=(their_orders, their_reports, *job.sockets),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=their_reports,  # if the interpreter itself fails, we read its error
                    cwd="/",
                    env=environment(),
                )
            finally:
                os.close(their_orders)
                os.close(their_reports)
            process.wait()  # it forks; the half that stays is not our child
            started._await_ready()
        except OSError as error:
            started.abandon()
            raise KernelRefused.at(device.path, "starting the worker", error.errno or 0, f"{sys.executable}") from error
        except BaseException:
            started.abandon()
            raise
        return started

    def _await_ready(self) -> None:
        word, _, rest = self._report().partition(" ")
        if word == "ready":
            self.pid = int(rest)
            return
        if word != "failed":
            last = self._drain().rpartition("\n")[2] or f"{word} {rest}"
            raise KernelRefused(self._device.path, f"the worker died: {plain(last)}", f"it ran with {sys.executable}")
        step, _, number = rest.partition(" ")
        if step == "NBD_SET_SOCK" and int(number) == errno.EBUSY:
            raise Taken
        raise KernelRefused.at(self._device.path, step, int(number), _HINTS.get(int(number), ""))

    def go(self) -> None:
        """Sends the worker into NBD_DO_IT. Returns when the kernel serves the device at its full size."""
        os.write(self._orders, worker.GO)
        kernel, deadline = Kernel(self._device), Deadline(START_SECONDS)
        while not deadline.passed:
            # After it sets the size, the driver marks the partitions for another scan, then sleeps.
            # If we scanned before that, they would vanish again at the next open.
            if kernel.attached and kernel.size and asleep(self.pid):
                return
            self.raise_if_ended(_POLL)
        raise KernelRefused(self._device.path, f"not served after {START_SECONDS} s", "see dmesg")

    def raise_if_ended(self, within: float) -> None:
        """Raises `ConnectionLost` or `KernelRefused` when the worker ends in the next `within` seconds."""
        poll = select.poll()
        poll.register(self._reports, select.POLLIN)
        if poll.poll(within * 1000):
            raise _did_not_serve(self._device, self._report())

    def commit(self) -> None:
        """From now on the attachment outlives us."""
        systemd.give_scope(self.pid, "nbdattach-worker")
        os.write(self._orders, worker.COMMIT)
        self._close_orders()

    def abandon(self) -> None:
        """Makes the worker undo its steps; returns when it has ended."""
        with contextlib.suppress(OSError):
            os.write(self._orders, worker.UNDO)  # a process forked from ours may hold our end open
        self._close_orders()
        self._drain()
        self.close()

    def _report(self) -> str:
        """The next line from the worker; its last output if it dies."""
        line = b""
        while not line.endswith(b"\n") and len(line) < _MAX_REPORT:
            byte = os.read(self._reports, 1)
            if not byte:
                break
            line += byte
        return line.decode(errors="replace").strip()

    def _drain(self) -> str:
        """Reads the worker's output until it ends."""
        said = b""
        while more := os.read(self._reports, _MAX_REPORT):
            said = (said + more)[-_MAX_REPORT:]
        return said.decode(errors="replace").strip()

    def _close_orders(self) -> None:
        if self._orders >= 0:
            os.close(self._orders)
            self._orders = -1

    def close(self) -> None:
        self._close_orders()
        if self._reports >= 0:
            os.close(self._reports)
            self._reports = -1


_HINTS = {
    errno.EPERM: "attaching needs root (CAP_SYS_ADMIN)",
    errno.EACCES: "attaching needs root",
}


def _did_not_serve(device: Device, report: str) -> NbdattachError:
    word, _, number = report.partition(" ")
    if word == "ended" and number != "0":
        return KernelRefused.at(device.path, "NBD_DO_IT", int(number))
    return ConnectionLost(device.path, "right after the handshake")
