# SPDX-License-Identifier: GPL-2.0-or-later
"""Remembers our attachments in /run/nbdattach. The files only help: the kernel decides which devices are attached.

One JSON file an attachment, one more while it is in trouble, and one when a flush has failed; readable by root only,
written atomically, without secrets. Their format is the fields of `Record`, `LastingOptions` and `TlsSession`. A new
field needs a default, so that a file of an older release can be read; `untrusted_json.made_of` leaves out fields of a
newer one.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import field
from typing import Any, TypeAlias

from nbdattach import untrusted_json
from nbdattach.connect_options import DEFAULT_ON_LOSS, LastingOptions
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, KernelRefused
from nbdattach.host import bare_files, open_files, procfs, syscalls
from nbdattach.host.procfs import alive, started
from nbdattach.immutable import as_dict, immutable
from nbdattach.kernel.leftovers import ENDED, STATE_FILES, UNFLUSHED
from nbdattach.kernel.sysfs import Kernel, identifier
from nbdattach.protocol.constants import NBD_FLAG_READ_ONLY
from nbdattach.protocol.target import Target, Trust, target_of
from nbdattach.text import quoted
from nbdattach.tls_session import TlsSession

RUN = "/run/nbdattach"
_DEVICES = 1 << 32
_MONITOR = 1 << 33
_START = _MONITOR + 1
# Seconds between checks of a lock's holder: if it is stopped at two checks in a row, the command waits no longer.
_LOOK_SECONDS = 1.0
# Longer than any attachment takes: deadlines of server, partitions, udev and the start of a monitor together.
_LOCK_SECONDS = 300.0
_POLL = 0.01


@immutable
class Record(LastingOptions):
    """One attachment as connect made it: data for `status`, and data with which the monitor reconnects it.

    Sizes in bytes, times in seconds; `since` is RFC 3339 in UTC. `on_loss` is None if I/O waits for ever, because JSON
    has no number for that. `pid` and `started` are the worker's, in our pid namespace, None for netlink; `kernel_pid`
    is the kernel's number of the process that attached the device, which distinguishes the attachment from the next
    one at the same device.
    """

    tag: str
    target: str
    export: str
    backend: str
    connections: int
    since: str
    kernel_pid: int | None
    pid: int | None = None
    started: int | None = None
    size: int = 0  # of the export, as the server announced it
    flags: int = 0  # as the kernel knows them
    block_size: int = 512
    max_sectors_kb: int = 0
    raw: bool = False  # attached without a handshake
    id: str = ""  # a random one; "" if an older release has attached it
    tls: TlsSession | None = None
    relay: int | None = None  # its pid, which may have been given to another process
    relay_started: int | None = None
    trust: Trust | None = None
    address: str | None = None  # at which the target's host was found
    using: str = ""  # the URI in use, if it is one of `also`
    left: tuple[str, ...] = ()  # servers and addresses that the monitor moved the device away from
    moving_to: str = ""  # the URI of a target to which a hand-over has begun
    moving_trust: Trust | None = None
    new_size: int | None = None  # to which a resize has begun
    on_loss: float | None = field(default=DEFAULT_ON_LOSS, kw_only=True)
    reconnect: bool = field(default=False, kw_only=True)

    @property
    def living_relay(self) -> int | None:
        """The pid of the process that carries TLS, if there is one now."""
        there = self.relay is not None and alive(self.relay) and started(self.relay) == self.relay_started
        return self.relay if there else None

    @property
    def read_only(self) -> bool:
        """From its beginning to its end. The kernel's mark may be that of a disconnect, which it takes back or not."""
        return bool(self.flags & NBD_FLAG_READ_ONLY)

    @property
    def uri(self) -> str:
        """Of the server in use, or to which a hand-over has begun, because the device may be there already."""
        return self.moving_to or self.using or self.target

    @property
    def others(self) -> list[str]:
        """The URIs of the servers that are not in use."""
        return [uri for uri in (self.target, *self.also) if uri != self.uri]

    def current_target(self) -> Target:
        """The target to dial."""
        return target_of(self.uri, self.moving_trust if self.moving_to else self.trust)


@immutable
class Trouble:
    """The monitor's report of an attachment that is not connected.

    `next_try` is None while a try is under way, and while the server is asked all the time whether it is back.

    It began at `since`, for people to read. `began`, for the monitor: when --on-loss began to count, in seconds of
    `clock.boot_time`, a clock that no user can set; None while another connection lives.
    """

    state: str  # "reconnecting" | "lost"
    since: str
    next_try: str | None
    error: str
    began: float | None = None


def path(device: Device) -> str:
    return f"{RUN}/{device.name}.json"


def save(device: Device, record: Record) -> None:
    """Raises OSError. One writer: connect, which holds the claim on the device; after it the monitor."""
    write(path(device), as_dict(record))


def save_trouble(device: Device, trouble: Trouble | None) -> None:
    """Writes the monitor's report of the device; None if all is well. Only the monitor calls this. Raises OSError."""
    if trouble is None:
        bare_files.remove(_trouble_path(device))
    else:
        write(_trouble_path(device), as_dict(trouble))


def trouble_of(device: Device) -> Trouble | None:
    """The monitor's last report of the device, even if the monitor has died since."""
    try:
        trouble = untrusted_json.made_of(Trouble, content_of(_trouble_path(device)))
    except (OSError, ValueError):
        return None
    return trouble if trouble.state in ("reconnecting", "lost") else None


def note_end(device: Device, ended: Identity) -> None:
    """Replaces all files about an attachment by a note that it has ended. The caller holds the claim on the device.

    Call this as soon as it has ended. Nothing else shows that while a program keeps the device: the kernel keeps size
    and pid. `ended` is the identity from before: by now there may be no pid, or that of another attachment.
    """
    from nbdattach.clock import now

    note: dict[str, object] = {"identity": ended, "since": now()}
    try:
        write(_end_path(device), note)
    except OSError:  # /run is full: what goes now may make room
        _remove(_files(device))
        with contextlib.suppress(OSError):
            write(_end_path(device), note)
    _remove(name for name in _files(device) if name != _end_path(device))


def forget_end(device: Device, ended: Identity) -> None:
    """Once the device is free. Another attachment may have come, and ended, meanwhile."""
    note = _noted_end(device)
    if note and note[0] == ended:
        bare_files.remove(_end_path(device))


def end_of(device: Device) -> Trouble | None:
    """The trouble of a device whose attachment has ended, while a program keeps it there."""
    note = _noted_end(device)
    if note is None or note[0][:2] != _in_kernel(device) or load(device):
        return None
    return Trouble("lost", note[1], None, "detached; the kernel frees it when its last user releases it")


def _noted_end(device: Device) -> tuple[Identity, str] | None:
    """With its time."""
    try:
        content = content_of(_end_path(device))
        pid, backend, name = content["identity"]
        return (pid, backend, name), str(content["since"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _end_path(device: Device) -> str:
    return f"{path(device)}{ENDED}"


def _trouble_path(device: Device) -> str:
    return f"{RUN}/{device.name}.trouble"


def content_of(name: str) -> Any:
    """What is in a state file. Raises OSError, ValueError."""
    with open(name) as file:
        return untrusted_json.parsed(file.read(untrusted_json.MAX_TEXT + 1))


def write(name: str, content: dict[str, object]) -> None:
    """Writes a state file, all of it or nothing. Raises OSError."""
    make_run()
    bare_files.replace(name, json.dumps(content))


def make_run() -> None:
    os.makedirs(RUN, mode=0o700, exist_ok=True)


def load(device: Device) -> Record | None:
    """The record of the present attachment; None if it is not ours, or if the file is stale or broken.

    Fields that this version does not know are left out; those it misses have their defaults.

    If the worker was killed while the device was in use, the device is still ours: the kernel keeps the worker's pid.
    """
    try:
        record = untrusted_json.made_of(Record, content_of(path(device)))
    except (OSError, ValueError):
        return None
    if not (record.connections and record.block_size):
        return None
    # A worker's pid may have been given to another process.
    same_process = record.pid is None or started(record.pid) in (None, record.started)
    kernel = Kernel(device)
    pid = kernel.pid
    same_attachment = pid is not None and pid == record.kernel_pid
    same_backend = kernel.by_netlink == (record.backend == "netlink")
    # A process that attaches by netlink twice has the same pid both times.
    same_tag = record.backend != "netlink" or kernel.backend == identifier(record.tag).strip()
    return record if same_attachment and same_process and same_backend and same_tag else None


Identity: TypeAlias = tuple[int | None, str | None, str | None]


def identity_of(device: Device) -> Identity:
    """Distinguishes an attachment from the next one there: kernel's pid, identifier, and the record's id or time.

    It stays the same when the attachment has ended, for as long as a program keeps the device.
    """
    record, there = load(device), _in_kernel(device)
    if record:
        return *there, record.id or record.since
    note = _noted_end(device)
    return note[0] if note and note[0][:2] == there else (*there, None)


def _in_kernel(device: Device) -> tuple[int | None, str | None]:
    """The part of the identity that the kernel keeps."""
    kernel = Kernel(device)
    return kernel.pid, kernel.backend


def are_hidden() -> bool:
    """Whether there may be files about attachments that only root can read."""
    return os.path.isdir(RUN) and not os.access(RUN, os.R_OK | os.X_OK)


def refuse_hidden() -> None:
    """Raises `KernelRefused` if only root may see our attachments."""
    if are_hidden():
        raise KernelRefused(RUN, "no permission to read the records of attachments", "run it as root: try sudo")


def mark_of(device: Device) -> tuple[str, str]:
    """Arguments for `flush.mark_unflushed`, to remember that a flush of this attachment failed. Raises OSError."""
    make_run()
    return path(device), json.dumps({"identity": identity_of(device)})


def is_unflushed(device: Device) -> bool:
    """Whether a flush of this very attachment has failed before."""
    try:
        pid, backend, since = content_of(f"{path(device)}{UNFLUSHED}")["identity"]
        there = identity_of(device)
        return (pid, backend) == there[:2] and since in (None, there[2])  # a worker does not know when it was made
    except (OSError, ValueError, TypeError, KeyError):
        return False


@contextlib.contextmanager
def tag_lock(tag: str, thing: str = "") -> Iterator[None]:
    """Two commands for one tag run one after the other. If a command dies, the kernel releases its lock.

    `thing`: as users know it, if that is no tag.

    Raises `DeviceInUse` if the other one is stopped, or takes too long.
    """
    with _locks() as fd:
        _wait_for(fd, zlib.crc32(tag.encode(errors="surrogateescape")), thing or f"tag {quoted(tag)}")
        yield


@contextlib.contextmanager
def device_lock(device: Device) -> Iterator[bool]:
    """One command at a time sets the device up where no claim ensures that; False if another command is at it."""
    with _locks() as fd:
        yield _locked(fd, _DEVICES + device.index)


@contextlib.contextmanager
def monitor_lock() -> Iterator[bool]:
    """Held by the one monitor of this host for as long as it lives; False if there is one already."""
    with _locks() as fd:
        yield _locked(fd, _MONITOR)


@contextlib.contextmanager
def start_lock() -> Iterator[None]:
    """One command at a time starts a monitor; the others find it running. Raises as `tag_lock`."""
    with _locks() as fd:
        _wait_for(fd, _START, "monitor")
        yield


def monitor_lives() -> bool:
    """Whether a monitor holds `monitor_lock`. Raises OSError if we may not ask."""
    with _locks() as fd:
        return syscalls.ofd_is_locked(fd, _MONITOR)


def _wait_for(fd: int, byte: int, thing: str) -> None:
    """Waits for a lock, but not without end as the kernel would: a holder that is stopped never releases it."""
    patience, suspect = Deadline(_LOCK_SECONDS), None
    while not _locked_within(fd, byte, Deadline(_LOOK_SECONDS)):
        holder = open_files.lock_holder(f"{RUN}/lock", byte)
        stopped = holder is not None and procfs.stopped(holder.pid)
        if holder and stopped and holder == suspect:
            cause = f"process {holder} is working on it, but is stopped"
            hint = f"kill -CONT {holder.pid} lets it continue, kill -KILL {holder.pid} ends it"
            raise DeviceInUse(thing, cause, hint)
        if patience.passed:
            cause = f"process {holder or '?'} has been working on it for {_LOCK_SECONDS:g} s"
            raise DeviceInUse(thing, cause, f"kill {holder.pid} ends it" if holder else "lslocks may show it")
        suspect = holder if stopped else None


def _locked_within(fd: int, byte: int, deadline: Deadline) -> bool:
    while not _locked(fd, byte):
        if not deadline.sleep(_POLL):
            return False
    return True


def _locked(fd: int, byte: int) -> bool:
    try:
        syscalls.ofd_write_lock(fd, byte)  # only the closing of this very file gives it back
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _locks() -> Iterator[int]:
    """The file of all locks: tags take the bytes below 2^32, devices and the monitor those above."""
    make_run()
    fd = os.open(f"{RUN}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def forget(device: Device) -> None:
    """Removes all files about the device, half-written ones included. The caller holds the claim on it."""
    _remove(_files(device))


def _remove(names: Iterable[str]) -> None:
    for name in names:
        bare_files.remove(name)


def _files(device: Device) -> list[str]:
    return [*_kept(device), _trouble_path(device), f"{_trouble_path(device)}.new"]


def remembers(device: Device) -> bool:
    """Whether there is a file about the device, even a stale one."""
    return any(map(os.path.exists, _kept(device)))


def _kept(device: Device) -> list[str]:
    """The files that a worker removes, too, when it ends by itself."""
    return [f"{path(device)}{end}" for end in STATE_FILES]
