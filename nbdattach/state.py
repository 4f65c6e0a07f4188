"""What we remember of our attachments, in /run/nbdattach: a help, never the truth, which is the kernel's.

One JSON file a device, readable by root only, written atomically, without secrets.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from nbdattach.device import Device
from nbdattach.process import started
from nbdattach.sysfs import Kernel

RUN = "/run/nbdattach"


@dataclass(frozen=True, slots=True)
class Record:
    """One attachment as connect made it. `since` is RFC 3339 in UTC.

    `pid` and `started` are the worker's, in our pid namespace; `kernel_pid` is the kernel's name for it.
    """

    tag: str
    target: str
    export: str
    backend: str
    connections: int
    since: str
    pid: int
    started: int
    kernel_pid: int | None


def path(device: Device) -> str:
    return f"{RUN}/{device.name}.json"


def save(device: Device, record: Record) -> None:
    """The caller holds the claim on the device, so there is one writer. Raises OSError."""
    os.makedirs(RUN, mode=0o700, exist_ok=True)
    new = f"{path(device)}.new"
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(record), file)
        os.replace(new, path(device))
    except BaseException:
        _remove(new)
        raise


def load(device: Device) -> Record | None:
    """The record of what is attached there now; None when it is not ours, or when the file is stale or broken.

    A device whose worker was killed while somebody used it is still ours: the kernel keeps the dead one's pid.
    """
    try:
        with open(path(device)) as file:
            record = Record(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None
    same_process = started(record.pid) in (None, record.started)  # else the pid was given to another one
    kernel_pid = Kernel(device).pid
    return record if kernel_pid is not None and kernel_pid == record.kernel_pid and same_process else None


@contextlib.contextmanager
def tag_lock(tag: str) -> Iterator[None]:
    """Two commands for one tag go one after the other. The kernel gives the lock back when we die."""
    os.makedirs(RUN, mode=0o700, exist_ok=True)
    fd = os.open(f"{RUN}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, zlib.crc32(tag.encode(errors="surrogateescape")))  # one byte a tag
        yield
    finally:
        os.close(fd)


def forget(device: Device) -> None:
    """Removes what is remembered of the device, half-written files included. The caller holds the claim on it."""
    _remove(path(device))
    _remove(f"{path(device)}.new")


def remembers(device: Device) -> bool:
    """Whether there is a file of the device, be it stale."""
    return os.path.exists(path(device)) or os.path.exists(f"{path(device)}.new")


def _remove(name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name)
