# SPDX-License-Identifier: GPL-2.0-or-later
"""The device node /dev/nbdN, opened: claimed for us alone, kept from udev, flushed, scanned for partitions."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, KernelRefused
from nbdattach.host import blocking, procfs
from nbdattach.host.blocking import Unanswered as Unanswered
from nbdattach.host.copies import Copy
from nbdattach.kernel import ioctl
from nbdattach.kernel.flush import flush_aside
from nbdattach.kernel.sysfs import Block, Kernel, exists

T = TypeVar("T")
# udev holds a shared lock while it probes the device: that takes milliseconds.
LOCK_SECONDS = 10
_PROGRESS = 0.25
_POLL = 0.01


class Busy(Exception):
    """Another program has the device exclusively: it is mounted, held by dm or md, swapped on, or being attached."""


class Node:
    """An exclusive claim on the device (`O_EXCL`) and udev's lock (`flock`), until it is closed; or a share of it.

    It is always opened read-only: after a program had it open for writing, udev probes the device again, and drops the
    partitions meanwhile. The claim is one atomic test: it fails if the device has a user of any kind, or if a second
    nbdattach is at work on it.
    """

    def __init__(self, device: Device, fd: int) -> None:
        self.device = device
        self.fd = fd
        self.exclusive = False
        self._caches: blocking.WriteBack | None = None  # see `open_caches`
        self._written = 0

    @classmethod
    def claim(cls, device: Device) -> Node:
        """Raises `Busy`, `KernelRefused`."""
        try:
            fd = os.open(device.path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Busy from None
            raise cannot_open(device, error) from None
        return cls.claimed(device, fd)

    @classmethod
    def claimed(cls, device: Device, fd: int) -> Node:
        """From a descriptor that was opened with O_EXCL, which is ours from now on. Raises `KernelRefused`."""
        node = cls(device, fd)
        node.exclusive = True
        try:
            node._check_block_device()
            node._lock()
        except BaseException:
            node.close()
            raise
        return node

    @classmethod
    def shared(cls, device: Device, fd: int) -> Node:
        """From a descriptor without the claim, beside the users of the device; with udev's lock if that is free.

        Raises `KernelRefused`.
        """
        node = cls(device, fd)
        try:
            node._check_block_device()
        except BaseException:
            node.close()
            raise
        with contextlib.suppress(OSError):
            fcntl.flock(node.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return node

    @classmethod
    def claim_within(cls, device: Device, deadline: Deadline) -> Node:
        """`claim` of a device that the kernel scans for partitions when it is opened: the scan waits for the server.

        Raises `Unanswered` too. If the claim comes after the deadline, it is given back at once.
        """
        return _within(deadline, lambda: cls.claim(device), too_late=lambda node: node.close())

    def _check_block_device(self) -> None:
        if not stat.S_ISBLK(os.fstat(self.fd).st_mode):
            raise KernelRefused(self.device.path, "not a block device", "did a program write a file there? remove it")
        found, wanted = procfs.major_minor(os.fstat(self.fd).st_rdev), Block(self.device.name).number
        if wanted not in (None, found):
            cause = f"its node belongs to another device: {found}, not {wanted}"
            raise KernelRefused(
                self.device.path, cause, f"rm {self.device.path}; udevadm trigger or mknod makes it again"
            )

    def _lock(self) -> None:
        """Takes the lock that udev asks tools to take (systemd's "Locking Block Device Access")."""
        deadline = Deadline(LOCK_SECONDS)
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise KernelRefused.at(self.device.path, "flock", error.errno or 0) from error
            else:
                return
            if not deadline.sleep(_POLL):
                raise DeviceInUse(self.device.path, f"locked by another process for {LOCK_SECONDS} s", "see lslocks")

    def flush(
        self,
        patience: float | None = None,
        progress: Callable[[float], None] = lambda _: None,
        mark: Sequence[str] = (),
    ) -> None:
        """Sends all data written through this machine's page caches to the server. Raises `KernelRefused`.

        With a silent server the flush waits without end, and no signal interrupts it. So another process makes it, and
        ours can be interrupted. `patience`: give up after so many seconds. `progress` is called a few times a second,
        with the seconds so far. If the flush fails, that process calls `mark_unflushed` with `mark`.
        """
        flushing = Copy(partial(flush_aside, self.device.path, mark), name="nbdattach-flush")
        began = time.monotonic()
        code = None
        while code is None:
            code = flushing.wait(_PROGRESS)
            if code is None:
                taken = time.monotonic() - began
                progress(taken)
                if patience is not None and taken >= patience:
                    code = errno.ETIMEDOUT
        self._written = Kernel(self.device).written
        if code:
            raise KernelRefused.at(
                self.device.path,
                "flushing to the server",
                code if code > 0 else errno.EINTR,  # a signal has ended it
                "nothing was detached; is the server up? --force detaches and loses unwritten data",
            )

    def open_caches(self, deadline: Deadline) -> None:
        """Starts the process that `was_written` asks; it opens the device and its partitions now.

        It has no claim, so if it is left behind it does not keep other commands from claiming the device. Raises
        `Unanswered`, `Killed`, OSError.
        """
        # A partition without a node has never been written to, because that takes one.
        self._caches = blocking.WriteBack(*Kernel(self.device).paths)
        self._caches.open(deadline)

    @property
    def helpers(self) -> set[int]:
        """Processes of ours that have the device open."""
        return {self._caches.pid} if self._caches else set()

    def close_caches(self) -> None:
        """Needed before partitions can go: the kernel drops no partition that is open."""
        if self._caches:
            self._caches.close()
            self._caches = None

    def was_written(self, deadline: Deadline) -> bool:
        """Writes dirty pages to the server; returns whether anything was written since the last flush ended.

        Raises `Unanswered`, `Killed`, and OSError if the kernel could not write; the kernel reports that only once. The
        server may keep the data in a cache of its own until the next flush.
        """
        if self._caches:
            self._caches.run(deadline)
        return Kernel(self.device).written != self._written

    @contextlib.contextmanager
    def closed_to_writers(self) -> Iterator[None]:
        """Within it, each write to the device or a partition fails with EPERM, also by a program that has it open.

        The kernel still writes its dirty pages to the server. Memory that a program has mapped can still be changed.
        Raises `KernelRefused`. After an error the read-only mark is as it was before. Otherwise the attachment has
        ended, and the mark is removed, even if another program has set it.
        """
        was_closed = Kernel(self.device).read_only
        if not was_closed:
            self._mark_read_only(True)
        try:
            yield
        except BaseException:
            if not was_closed:
                self._mark_read_only(False)
            raise
        self._mark_read_only(False)

    def _mark_read_only(self, mark: bool) -> None:
        with self._step("BLKROSET"):
            ioctl.blkroset(self.fd, mark)

    def allow_writes(self) -> None:
        """Lifts the read-only mark that another tool set at this device by BLKROSET: it outlives attachments."""
        self._mark_read_only(False)

    def is_of_another_disk_now(self) -> None:
        """Sets the node's time, by which libblkid sees that what it has read of the device is old.

        Otherwise it would take that for what is there, for 2 s (BLKID_PROBE_MIN): `mount LABEL=` of the disk before
        would mount this one.
        """
        now = time.time_ns()
        with contextlib.suppress(OSError):  # /dev may be read-only, as in a container
            os.utime(self.fd, ns=(now, now))

    def let_udev_in(self) -> None:
        """Releases udev's lock, and keeps the claim."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def scan_partitions(self, deadline: Deadline) -> None:
        """Makes the kernel look for partitions now. Raises `KernelRefused`, `Unanswered`.

        The kernel waits for the server's answer without end and cannot be interrupted, so a thread makes the call.
        """
        try:
            _within(deadline, lambda: ioctl.blkrrpart(self.fd))
        except OSError as error:
            # EINVAL: it allows none. EIO: there is none to be read, as on 6.12 for a single sector.
            # EBUSY: a program has opened one already, so the kernel has read the table (it does at the first open).
            if error.errno not in (errno.EINVAL, errno.EIO, errno.EBUSY):
                raise KernelRefused.at(self.device.path, "BLKRRPART", error.errno or 0) from error

    def first_page(self, deadline: Deadline) -> bytes | None:
        """None if it cannot be read; costs nothing after a partition scan. Raises `Unanswered`."""
        try:
            return self.read([(0, 4096)], deadline)[0]
        except OSError:
            return None

    def read(self, ranges: Sequence[tuple[int, int]], deadline: Deadline) -> list[bytes]:
        """The bytes of each range (offset, length), by the page cache. Raises `Unanswered`, OSError."""
        return _within(deadline, lambda: [os.pread(self.fd, length, offset) for offset, length in ranges])

    def disconnect(self) -> None:
        """Ends the attachment: the kernel sends NBD_CMD_DISC to the server. Raises `KernelRefused`."""
        with contextlib.suppress(OSError):  # the kernel refuses it on devices of the netlink interface
            ioctl.nbd_clear_que(self.fd)
        with self._step("NBD_DISCONNECT"):
            ioctl.nbd_disconnect(self.fd)

    def disconnect_within(self, deadline: Deadline) -> None:
        """`disconnect`, which blocks while the server does not read the data sent to it. Raises `Unanswered`."""
        _within(deadline, self.disconnect)

    def clear(self, deadline: Deadline) -> None:
        """Removes size and partitions. While we hold the claim, this cannot affect an attachment that came later.

        The kernel keeps the size while another program has the device open, so we ask it again until the deadline.
        """
        kernel = Kernel(self.device)
        while True:
            with self._step("NBD_CLEAR_SOCK"):
                ioctl.nbd_clear_sock(self.fd)
            # A scan of a device that has kept its size changes nothing, and ends in errors in the kernel's log.
            if not kernel.size or kernel.partitions:
                # Unanswered while another opener keeps a dead size.
                with contextlib.suppress(KernelRefused, Unanswered):
                    self.scan_partitions(deadline)
            if not (kernel.size or kernel.partitions) or not deadline.sleep(_POLL):
                return

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KernelRefused.at(self.device.path, name, error.errno or 0) from error

    def close(self) -> None:
        self.close_caches()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.close()


def _within(deadline: Deadline, call: Callable[[], T], too_late: Callable[[T], object] = lambda _: None) -> T:
    """The result of `call`, run in a thread because the kernel cannot be interrupted in it. Raises `Unanswered`."""
    values: list[T] = []
    errors: list[BaseException] = []
    mutex, given_up = threading.Lock(), False

    def run() -> None:
        try:
            value = call()
        except BaseException as error:
            errors.append(error)
            return
        with mutex:
            if given_up:
                too_late(value)
            else:
                values.append(value)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(deadline.remaining())
    with mutex:
        if values:
            return values[0]
        given_up = True
    if errors:
        raise errors[0]
    raise Unanswered


def cannot_open(device: Device, error: OSError) -> KernelRefused:
    if error.errno in (errno.EACCES, errno.EPERM):
        return KernelRefused(device.path, "no permission to open it", "attaching and detaching need root: try sudo")
    if error.errno == errno.ENOENT and exists(device):
        cause = "the kernel has the device, but /dev has no node for it"
        return KernelRefused(
            device.path, cause, "in a container, pass the device in; elsewhere udevadm trigger makes it"
        )
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return KernelRefused(
            device.path,
            "the kernel has no such device",
            "--backend netlink makes it; without DEVICE, a free one is used",
        )
    return KernelRefused.at(device.path, "open", error.errno or 0)
