"""Attaching and detaching: the order of things, and the way back from each step.

Decisions that matter:
* The exclusive claim on the node is the lock: the kernel grants it to one process, refuses it while anybody uses the
  device, and takes it back when we die. No lock file can do that.
* The worker undoes everything unless it is told that the attachment is complete. So a connect that fails, or is
  killed at any moment, leaves nothing behind.
* NBD_SET_SOCK decides between us and foreign tools: whoever comes second gets EBUSY and looks for another device.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from nbdattach import client, driver, geometry, state, sysfs, udev
from nbdattach.client import Connection, silent
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import (
    BrokenProtocol,
    DeadlinePassed,
    DeviceInUse,
    KernelRefused,
    NbdattachError,
    NoConnection,
    Refused,
    TlsFailed,
)
from nbdattach.export import Export
from nbdattach.geometry import Geometry
from nbdattach.ioctl_backend import Taken, Worker
from nbdattach.node import Busy, Node, Unanswered
from nbdattach.process import alive, started
from nbdattach.proto import NBD_FLAG_HAS_FLAGS
from nbdattach.status import status_of
from nbdattach.stream import Trace, dial
from nbdattach.sysfs import Kernel
from nbdattach.target import Target
from nbdattach.users import users_of
from nbdattach.wiretext import quoted
from nbdattach.worker import GOODBYE_SECONDS

# Where --connections says auto: more than four showed no gain (make bench).
AUTO_CONNECTIONS = 4
MAX_CONNECTIONS = 64
DETACH_SECONDS = 60
_POLL = 0.01
_RETRY_PAUSE = 0.5
_LAST_GASP = 2.0


@dataclass(frozen=True, slots=True)
class Wishes:
    """What connect's options ask for. Sizes in bytes, times in seconds; `connections` 0 means auto."""

    read_only: bool = False
    block_size: int | None = None
    connections: int = 0
    connect_timeout: float = client.DEFAULT_TIMEOUT
    retry_for: float = 0.0
    tag: str = ""
    expect_size: int | None = None
    raw_size: int | None = None  # --size with --no-handshake
    swap: bool = False


@dataclass(frozen=True, slots=True)
class Attached:
    """The outcome of a connect. `notes` are what the user should hear: a lost tail, fewer connections."""

    device: Device
    notes: list[str]


def attach(target: Target, device: Device | None, wishes: Wishes, trace: Trace = silent) -> Attached:
    """Attaches the target's export at `device`, or at a free one. When it returns, the device is ready to use.

    Raises `NbdattachError`; then nothing is attached and nothing left behind.
    """
    driver.ensure_loaded()
    tag = wishes.tag or target.uri
    there = _already_there(tag, device)
    if there:
        _see_it_is_what_is_wanted(there, target, wishes)
        return Attached(there, [f"{there.path}: already attached to {target.uri}"])
    if target.tls:
        raise TlsFailed(
            target.uri, "attaching over TLS is not possible in this version", "list, info and check speak TLS"
        )
    with _connected(target, wishes, trace) as (connections, export, notes):
        shape = geometry.plan(target.uri, export, wishes.read_only, wishes.block_size)
        if shape.tail:
            notes.append(f"{target.uri}: the last {shape.tail} bytes are less than a block and cannot be reached")
        sockets = [connection.stream.sock.fileno() for connection in connections]
        for node in _candidates(device):
            with node:
                try:
                    worker = Worker.start(node.device, sockets, shape, state.path(node.device), wishes.swap)
                except Taken:
                    trace(f"{node.device.path}: another task came first")
                    continue
                trace(f"{node.device.path}: set up, {len(sockets)} connection(s)")
                identity = _Identity(tag, target.uri, export.name, len(sockets))
                if not _complete(node, worker, shape, identity, Deadline(wishes.connect_timeout)):
                    notes.append(f"{target.uri}: attached, but the server cannot read the first block of the export")
            if not udev.settle(DETACH_SECONDS):
                notes.append(f"{node.device.path}: udev has not settled; links in /dev/disk may come later")
            return Attached(node.device, notes)
    raise _none_free(device)


@dataclass(frozen=True, slots=True)
class _Identity:
    tag: str
    target: str
    export: str
    connections: int


def _complete(node: Node, worker: Worker, shape: Geometry, who: _Identity, deadline: Deadline) -> bool:
    """From "set up" to "ready"; False when the beginning of the device cannot be read.

    Limits come first, since the kernel reads as soon as it serves.
    """
    try:
        _set_request_limit(node.device, shape)
        pid = worker.go()
        node.scan_partitions(deadline)
        readable = node.is_readable(deadline)
        # What cannot be read may be a bad sector over there, or a server that left: then the worker ends soon.
        worker.raise_if_ended(0 if readable else _LAST_GASP)
        since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        record = state.Record(who.tag, who.target, who.export, "ioctl", who.connections, since, pid, started(pid) or 0)
        state.save(node.device, record)
        worker.commit()
    except Unanswered:
        worker.abandon()
        raise DeadlinePassed(who.target, deadline.seconds, "the kernel reads the partition table") from None
    except OSError as error:
        worker.abandon()
        raise KernelRefused.at(node.device.path, error.filename or "attach", error.errno or 0) from error
    except BaseException:
        worker.abandon()
        raise
    worker.close()
    return readable


def _set_request_limit(device: Device, shape: Geometry) -> None:
    try:
        Kernel(device).set_max_sectors_kb(shape.max_sectors_kb)
    except OSError as error:
        raise KernelRefused.at(device.path, f"max_sectors_kb {shape.max_sectors_kb}", error.errno or 0) from error


# -- connections -------------------------------------------------------------------------------------------------


@contextmanager
def _connected(target: Target, wishes: Wishes, trace: Trace) -> Iterator[tuple[list[Connection], Export, list[str]]]:
    """All connections of one attachment; closed at the end, when the kernel has its own reference or needs none."""
    connections = [_first_connection(target, wishes, trace)]
    try:
        export = connections[0].export
        _check_size(target, export, wishes)
        wanted, notes = _how_many(target, export, wishes)
        connections += _more_connections(target, export, wishes, wanted - 1, trace)
        for connection in connections:
            connection.stream.sock.settimeout(None)
        yield connections, export, notes
    finally:
        for connection in connections:
            connection.stream.close()


def _first_connection(target: Target, wishes: Wishes, trace: Trace) -> Connection:
    """Tries again for as long as --retry-for says, while nobody is there."""
    patience = Deadline(wishes.retry_for)
    while True:
        try:
            return _connection(target, wishes, trace)
        except NoConnection as error:
            trace(str(error))
            if not patience.sleep(_RETRY_PAUSE):
                raise


def _connection(target: Target, wishes: Wishes, trace: Trace) -> Connection:
    if wishes.raw_size is None:
        return client.connect(target, wishes.connect_timeout, trace)
    stream = dial(target, Deadline(wishes.connect_timeout), trace)
    return Connection(stream, Export(target.export, wishes.raw_size, NBD_FLAG_HAS_FLAGS, "none"))


def _check_size(target: Target, export: Export, wishes: Wishes) -> None:
    if wishes.expect_size is not None and wishes.expect_size != export.size:
        raise Refused(
            target.uri,
            f"the export has {export.size} bytes, --expect-size says {wishes.expect_size}",
            "is it the right export?",
        )


def _how_many(target: Target, export: Export, wishes: Wishes) -> tuple[int, list[str]]:
    """Connections to make, and what to say where it is fewer than asked for."""
    if wishes.connections == 1 or not export.can_multi_conn:
        notes = []
        if wishes.connections > 1:
            notes.append(f"{target.uri}: the server allows one connection only, so one is what you get")
        return 1, notes
    return wishes.connections or min(AUTO_CONNECTIONS, os.cpu_count() or 1), []


def _more_connections(target: Target, export: Export, wishes: Wishes, count: int, trace: Trace) -> list[Connection]:
    """Dialled in parallel; each must show the very same export."""
    if not count:
        return []
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(_connection, target, wishes, trace) for _ in range(count)]
    made = [future.result() for future in futures if not future.exception()]
    failures = [failure for future in futures if (failure := future.exception())]
    differ = [connection for connection in made if connection.export != export]
    if failures or differ:
        for connection in made:
            connection.stream.close()
        raise (
            failures[0]
            if failures
            else BrokenProtocol(target.uri, "the connections show different exports under the same name")
        )
    return made


# -- devices -----------------------------------------------------------------------------------------------------


def _already_there(tag: str, device: Device | None) -> Device | None:
    """The device that holds this very attachment. Raises `DeviceInUse` where `device` holds another one."""
    for candidate in [device] if device else sysfs.devices():
        record = state.load(candidate)
        if record and record.tag == tag and alive(record.pid):
            return candidate
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


def _candidates(device: Device | None) -> Iterator[Node]:
    """Claimed devices to try: the one named, or every free one."""
    if device:
        try:
            yield Node.claim(device)
        except Busy:
            raise _busy(device) from None
        return
    for free in sysfs.devices():
        kernel = Kernel(free)
        if kernel.attached or kernel.size:
            continue
        try:
            node = Node.claim(free)
        except Busy:
            continue
        if kernel.attached:  # somebody was faster than our claim
            node.close()
            continue
        yield node


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


def _busy(device: Device) -> DeviceInUse:
    """The claim failed: say who, where that can be seen."""
    users = str(users_of(device)) or "open exclusively by another program"
    return DeviceInUse(device.path, users, "release it first: umount, swapoff, or stop what holds it")


# -- detaching ---------------------------------------------------------------------------------------------------


def detach(device: Device, seconds: float = DETACH_SECONDS, trace: Trace = silent) -> bool:
    """Detaches once it is safe; True when there was something to detach. `seconds` bound the wait for the kernel.

    Raises `DeviceInUse` while anybody uses it, `KernelRefused` where its data cannot be flushed; it then stays.
    """
    driver.refuse_other_systems()
    if not Kernel(device).attached:
        _forget_the_dead(device)
        return False
    deadline = Deadline(seconds)
    try:
        node = Node.claim(device)
    except Busy:
        raise _busy(device) from None
    with node:
        if users_of(device):  # loop devices hold nothing exclusively
            raise _busy(device)
        trace(f"{device.path}: claimed, flushing")
        node.flush()
        node.disconnect()
        trace(f"{device.path}: NBD_DISCONNECT")
        _await_worker(device, deadline)
        node.clear(deadline)
        state.forget(device)
    _await_free(device, deadline)
    udev.settle(max(1.0, deadline.remaining()))
    return True


def _forget_the_dead(device: Device) -> None:
    """A worker that was killed could not take its record away."""
    if state.remembers(device) and sysfs.exists(device):
        with suppress(Busy), Node.claim(device):
            if not Kernel(device).attached:
                state.forget(device)


def _await_worker(device: Device, deadline: Deadline) -> None:
    """The process in NBD_DO_IT cleans up by itself when the server has hung up; a silent server is not waited for."""
    pid = Kernel(device).pid
    patience = Deadline(min(GOODBYE_SECONDS, deadline.remaining()))
    while pid and alive(pid) and patience.sleep(_POLL):
        pass


def _await_free(device: Device, deadline: Deadline) -> None:
    kernel = Kernel(device)
    while kernel.attached or kernel.size or kernel.partitions:
        if not deadline.sleep(_POLL):
            raise DeviceInUse(
                device.path, "detached, but another program still has it open", "fuser -v shows which; close it"
            )
