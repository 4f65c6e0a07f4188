"""Attaching: the order of things, and the way back from each step.

Decisions that matter:
* The exclusive claim on the node is the lock: the kernel grants it to one process, refuses it while anybody uses the
  device, and takes it back when we die. No lock file can do that.
* The worker undoes everything unless it is told that the attachment is complete. So a connect that fails, or is
  killed at any moment, leaves nothing behind.
* NBD_SET_SOCK decides between us and foreign tools: whoever comes second gets EBUSY and looks for another device.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nbdattach import driver, geometry, state, sysfs, udev
from nbdattach.client import silent
from nbdattach.connections import connected
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import ConnectionLost, DeadlinePassed, DeviceInUse, KernelRefused, NbdattachError, TlsFailed
from nbdattach.export import Export
from nbdattach.geometry import Geometry
from nbdattach.ioctl_backend import Taken, Worker
from nbdattach.node import Busy, Node, Unanswered
from nbdattach.process import alive, started
from nbdattach.status import status_of
from nbdattach.stream import Trace
from nbdattach.sysfs import Kernel
from nbdattach.target import Target
from nbdattach.users import in_use, users_of
from nbdattach.wiretext import quoted
from nbdattach.wishes import Wishes

SETTLE_SECONDS = 60
# Milliseconds. The first is the kernel's own default; with one connection it only writes to the kernel's log.
IO_TIMEOUT_MS = 30_000
IO_TIMEOUT_SEVERAL_MS = 7 * 24 * 3600 * 1000
# A worker whose server has left ends in milliseconds.
_LAST_GASP = 2.0
_CLEAR_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Attached:
    """The outcome of a connect. `notes` are what the user should hear: a lost tail, fewer connections.

    `pid` is the kernel's for this attachment, by which `detach` knows it again; `fresh` is False where it was there.
    """

    device: Device
    notes: list[str]
    pid: int | None
    fresh: bool = True


def attach(target: Target, device: Device | None, wishes: Wishes, trace: Trace = silent) -> Attached:
    """Attaches the target's export at `device`, or at a free one. When it returns, the device is ready to use.

    Raises `NbdattachError`; then nothing is attached and nothing left behind.
    """
    driver.ensure_loaded()
    if target.tls:
        raise TlsFailed(
            target.uri, "attaching over TLS is not possible in this version", "list, info and check speak TLS"
        )
    tag = wishes.tag or target.uri
    there = _already_there(tag, target, device, wishes)
    if there:
        return there
    with connected(target, wishes, trace) as (connections, export, notes), _alone_with(tag):
        there = _already_there(tag, target, device, wishes)  # another command may have been faster
        if there:
            return there
        shape = geometry.plan(target.uri, export, wishes.read_only, wishes.block_size)
        if shape.tail:
            notes.append(f"{target.uri}: the last {shape.tail} bytes are less than a block and cannot be reached")
        job = _Job(tag, target, export, shape, [connection.stream.sock.fileno() for connection in connections])
        for node in _candidates(device, export):
            with node:
                try:
                    worker = Worker.start(node.device, job.sockets, shape, state.path(node.device), wishes.swap)
                except Taken:
                    trace(f"{node.device.path}: another task came first")
                    continue
                trace(f"{node.device.path}: set up, {len(job.sockets)} connection(s)")
                notes += _complete(node, worker, job, Deadline(wishes.connect_timeout))
                return Attached(node.device, notes, Kernel(node.device).pid)
    raise _none_free(device)


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be attached: the same for each device that is tried."""

    tag: str
    target: Target
    export: Export
    shape: Geometry
    sockets: list[int]


@contextmanager
def _alone_with(tag: str) -> Iterator[None]:
    try:
        with state.tag_lock(tag):
            yield
    except PermissionError as error:
        raise KernelRefused(state.RUN, "no permission", "attaching and detaching need root: try sudo") from error


def _complete(node: Node, worker: Worker, job: _Job, deadline: Deadline) -> list[str]:
    """From "set up" to "ready and ours"; what the user should hear. Undoes all where it fails."""
    try:
        try:
            return _steps_to_ready(node, worker, job, deadline)
        except Unanswered:
            raise DeadlinePassed(job.target.uri, deadline.seconds, "the kernel reads the partition table") from None
        except BrokenPipeError:
            raise ConnectionLost(job.target.uri, "right after the handshake") from None
        except OSError as error:
            raise KernelRefused.at(node.device.path, error.filename or "attach", error.errno or 0) from error
    except BaseException:
        worker.abandon()
        node.clear(Deadline(_CLEAR_SECONDS))
        state.forget(node.device)
        raise
    finally:
        worker.close()


def _steps_to_ready(node: Node, worker: Worker, job: _Job, deadline: Deadline) -> list[str]:
    """Limits come first, as the kernel reads as soon as it serves; the commit last, as until then all is undone."""
    notes = []
    _set_queue_limits(node.device, job)
    worker.go()
    node.scan_partitions(deadline)
    readable = node.is_readable(deadline)
    # What cannot be read may be a bad sector over there, or a server that left: then the worker ends soon.
    worker.raise_if_ended(0 if readable else _LAST_GASP)
    if not readable:
        notes.append(f"{job.target.uri}: attached, but the server cannot read the first block of the export")
    node.let_udev_in()
    if not udev.settle(SETTLE_SECONDS):
        notes.append(f"{node.device.path}: udev has not settled; links in /dev/disk may come later")
    state.save(node.device, _record(node.device, worker, job))
    worker.commit()
    return notes


def _record(device: Device, worker: Worker, job: _Job) -> state.Record:
    return state.Record(
        tag=job.tag,
        target=job.target.uri,
        export=job.export.name,
        backend="ioctl",
        connections=len(job.sockets),
        since=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        pid=worker.pid,
        started=started(worker.pid) or 0,
        kernel_pid=Kernel(device).pid,
    )


def _set_queue_limits(device: Device, job: _Job) -> None:
    """All of them each time: what one attachment sets outlives it."""
    kernel = Kernel(device)
    kernel.set_queue("max_sectors_kb", job.shape.max_sectors_kb)
    # With several connections the driver takes a request of this age for a dead connection, fails over to another
    # one and sends it again, though the server may still be at it. Slow is not dead.
    kernel.set_queue("io_timeout", IO_TIMEOUT_MS if len(job.sockets) == 1 else IO_TIMEOUT_SEVERAL_MS)


def _already_there(tag: str, target: Target, device: Device | None, wishes: Wishes) -> Attached | None:
    """The attachment that is asked for, where it is there. Raises `DeviceInUse` where `device` holds another one."""
    for candidate in [device] if device else sysfs.devices():
        record = state.load(candidate)
        if record and record.tag == tag and alive(record.pid):
            _see_it_is_what_is_wanted(candidate, target, wishes)
            note = f"{candidate.path}: already attached to {target.uri}"
            return Attached(candidate, [note], Kernel(candidate).pid, fresh=False)
    if device and Kernel(device).attached:
        raise _holds_other(device)
    return None


def _see_it_is_what_is_wanted(device: Device, target: Target, wishes: Wishes) -> None:
    """An attachment with the right tag but another export, or other properties, is not the one asked for."""
    there = status_of(device)
    hint = f"nbdattach disconnect {device.path}, or give another --tag"
    if there.target != target.uri:
        raise DeviceInUse(device.path, f"the tag {quoted(there.tag or '')} is taken: it holds {there.target}", hint)
    if wishes.read_only and not there.read_only:
        raise DeviceInUse(device.path, f"{target.uri} is attached there read-write, not read-only", hint)
    for option, wanted, found in (
        ("--expect-size", wishes.expect_size, there.size),
        ("--block-size", wishes.block_size, there.block_size),
    ):
        if wanted is not None and wanted != found:
            raise DeviceInUse(
                device.path, f"{target.uri} is attached there with {found} bytes, not {option} {wanted}", hint
            )


def _candidates(device: Device | None, export: Export) -> Iterator[Node]:
    """Claimed devices to try: the one named, or every free one."""
    if device:
        if _is_spoilt(device, export):
            raise KernelRefused(
                device.path,
                "another tool made it send NBD_CMD_WRITE_ZEROES, which this server does not know",
                "take another device, or load the driver anew: modprobe -r nbd; modprobe nbd",
            )
        try:
            yield Node.claim(device)
        except Busy:
            raise in_use(device) from None
        return
    for free in sysfs.devices():
        kernel = Kernel(free)
        if kernel.attached or kernel.size or _is_spoilt(free, export):
            continue
        try:
            node = Node.claim(free)
        except Busy:
            continue
        if kernel.attached:  # somebody was faster than our claim
            node.close()
            continue
        yield node


def _is_spoilt(device: Device, export: Export) -> bool:
    return not export.takes_write_zeroes and Kernel(device).sends_write_zeroes


def _none_free(device: Device | None) -> NbdattachError:
    if device:
        return DeviceInUse(device.path, "another program is attaching something there", "see nbdattach status")
    count = len(sysfs.devices())
    return DeviceInUse(
        "nbd", f"all {count} devices are in use", "nbdattach status shows them; modprobe nbd nbds_max=N sets how many"
    )


def _holds_other(device: Device) -> DeviceInUse:
    status = status_of(device)
    if status.state == "lost":
        users = str(users_of(device)) or "open"
        return DeviceInUse(
            device.path, f"holds what is left of a lost attachment, and is still {users}", "release it first: umount it"
        )
    what = status.target or f"something that process {status.pid} attached"
    return DeviceInUse(device.path, f"holds {what}", f"nbdattach disconnect {device.path}, or take another device")
