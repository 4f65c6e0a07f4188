# SPDX-License-Identifier: GPL-2.0-or-later
"""The ioctl backend: starts the worker process that keeps the device, and sees it through until it serves.

What the worker does, and the words the two exchange, is in `worker`.
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
from nbdattach.host.spawn import bare_python
from nbdattach.kernel import worker
from nbdattach.kernel.node import Node
from nbdattach.kernel.sysfs import Kernel
from nbdattach.text import plain

# From the order to the device being there; the kernel needs milliseconds, an emulated machine a second.
START_SECONDS = 30
_POLL = 0.002
_MAX_REPORT = 4096
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH")


# The kernel's own default: with one connection it only writes to the kernel's log.
_IO_TIMEOUT_MS = 30_000
_CLEAR_SECONDS = 5.0


def attach(device: Device, job: Job) -> Worker:
    """The device, claimed and served. Raises `Busy`, `Taken`, `KernelRefused`, `ConnectionLost`, OSError."""
    node = Node.claim(device)
    try:
        remove_old_partitions(node)
        # NBD_SET_SOCK decides between us and foreign tools: whoever comes second gets EBUSY.
        started = Worker.start(node, job)
        try:
            # As soon as the kernel serves the device, somebody may read from it.
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
    """A started worker. Until `commit` it undoes everything as soon as we close our end or die."""

    def __init__(self, node: Node, orders: int, reports: int) -> None:
        self.node = node
        self.pid = 0  # in our own namespace; the kernel may know it by another number
        self._device = node.device
        self._orders = orders
        self._reports = reports

    @classmethod
    def start(cls, node: Node, job: Job) -> Worker:
        """The device set up but not yet serving. Raises `Taken`, `KernelRefused` with the step that failed."""
        their_orders, orders = os.pipe()
        reports, their_reports = os.pipe()
        started = cls(node, orders, reports)
        shape, device = job.shape, node.device
        numbers = (
            shape.block_size,
            shape.blocks,
            shape.flags,
            job.wishes.whole_io_timeout,
            their_orders,
            their_reports,
            job.wishes.dead_peer,
            *job.sockets,
        )
        words = [device.path, state.path(device), "swap" if job.wishes.swap else "", *map(str, numbers)]
        try:
            for number in job.sockets:
                drop_at_close(number)
            try:
                process = subprocess.Popen(
                    bare_python("main", *words),
                    pass_fds=(their_orders, their_reports, *job.sockets),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=their_reports,  # should the interpreter itself fail, its last words reach us
                    cwd="/",
                    env={key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ},
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
            raise KernelRefused(self._device.path, f"the worker died: {plain(last)}", f"it was run by {sys.executable}")
        step, _, number = rest.partition(" ")
        if step == "NBD_SET_SOCK" and int(number) == errno.EBUSY:
            raise Taken
        raise KernelRefused.at(self._device.path, step, int(number), _HINTS.get(int(number), ""))

    def go(self) -> None:
        """Into NBD_DO_IT. Returns when the kernel serves the device at its full size."""
        os.write(self._orders, worker.GO)
        kernel, deadline = Kernel(self._device), Deadline(START_SECONDS)
        while not deadline.passed:
            # The driver marks the partitions for scanning once more after the size is set, then sleeps.
            # Who scans before that would see them vanish again at the next open.
            if kernel.attached and kernel.size and asleep(self.pid):
                return
            self.raise_if_ended(_POLL)
        raise KernelRefused(self._device.path, f"not served after {START_SECONDS} s", "see dmesg")

    def raise_if_ended(self, within: float) -> None:
        """Raises `ConnectionLost` or `KernelRefused` when the worker ends in the next `within` seconds."""
        if select.select([self._reports], [], [], within)[0]:
            raise _did_not_serve(self._device, self._report())

    def commit(self) -> None:
        """From now on the attachment outlives us."""
        systemd.give_scope(self.pid, "nbdattach-worker")
        os.write(self._orders, worker.COMMIT)
        self._close_orders()

    def abandon(self) -> None:
        """The worker undoes what it did; returns when it has ended."""
        with contextlib.suppress(OSError):
            os.write(self._orders, worker.UNDO)  # a process forked from ours may hold our end open
        self._close_orders()
        self._drain()
        self.close()

    def _report(self) -> str:
        """The next line of the worker; its last words when it dies."""
        line = b""
        while not line.endswith(b"\n") and len(line) < _MAX_REPORT:
            byte = os.read(self._reports, 1)
            if not byte:
                break
            line += byte
        return line.decode(errors="replace").strip()

    def _drain(self) -> str:
        """What it says until it has closed its end, which it does by ending."""
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
