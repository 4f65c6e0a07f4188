# SPDX-License-Identifier: GPL-2.0-or-later
"""The settings of a device's queue that users choose: the I/O scheduler, and how far the kernel reads ahead.

Decisions that matter:
* Both outlive an attachment, because they belong to the device. So we remember what they were before. A detach takes
  them back, or, if the attachment ended in another way, the next one; unless another program has changed them since.
* Read-ahead is set by ioctl: a write to its file waits for all requests since Linux 6.12, so the monitor could not do
  that. It sets read-ahead again after a change of the size, because the kernel then raises a smaller one to its
  default (6.12 and 7.2, blk_apply_bdi_limits in block/blk-settings.c). A new connection changes neither.
"""

from __future__ import annotations

import contextlib
import errno
import os

from nbdattach import untrusted_json
from nbdattach.attached import state
from nbdattach.device import Device
from nbdattach.errors import KernelRefused
from nbdattach.host import bare_files
from nbdattach.host.copies import Copy
from nbdattach.immutable import as_dict, immutable
from nbdattach.kernel import ioctl, sysfs
from nbdattach.kernel.node import Node
from nbdattach.kernel.sysfs import SECTOR, Kernel

# Seconds that the monitor waits until read-ahead is set: another process opens the device, which may need its server.
_SECONDS = 5.0


@immutable
class _Change:
    """A setting before we changed it, and since."""

    before: str
    ours: str


@immutable
class _Changes:
    """Of one device, until the driver is loaded anew. Read-ahead in sectors."""

    driver: int
    scheduler: _Change | None = None
    read_ahead: _Change | None = None


def set_scheduler(device: Device, wanted: str | None) -> None:
    """None takes back what an earlier attachment has set. The kernel waits for all requests first.

    Raises `KernelRefused` if the kernel does not have that scheduler, with the names of those it has; OSError.
    """
    kernel, changes = Kernel(device), _load(device)
    if wanted is None and changes.scheduler is None:
        return
    now = kernel.scheduler
    before = _before(changes.scheduler, now)
    wish = wanted or before
    if wish and wish != now:
        try:
            kernel.set_scheduler(wish)
        except OSError as error:
            if wanted is None:
                return  # its module has gone
            raise _unknown(device, wanted, error) from error
    _save(device, changes, scheduler=_Change(before or now, kernel.scheduler) if wanted else None)


def set_read_ahead(node: Node, wanted: int | None) -> None:
    """In bytes, rounded up to whole pages. None takes back what an earlier attachment has set. Raises OSError."""
    changes = _load(node.device)
    if wanted is None and changes.read_ahead is None:
        return
    now = str(ioctl.blkraget(node.fd))
    before = _before(changes.read_ahead, now)
    wish = before if wanted is None else str(_sectors(wanted))
    if wish:
        ioctl.blkraset(node.fd, int(wish))
    ours = None if wanted is None else _Change(before or now, str(ioctl.blkraget(node.fd)))
    _save(node.device, changes, read_ahead=ours)


def take_back(node: Node) -> None:
    """After an attachment. If the kernel would have to wait for requests, the next attachment does it."""
    if not Kernel(node.device).pending:
        with contextlib.suppress(OSError):
            set_read_ahead(node, None)
            set_scheduler(node.device, None)


def set_read_ahead_again(device: Device, wanted: int) -> bool:
    """For the monitor, after a change of the size; False if it takes long. Raises OSError."""
    path, sectors = device.path, _sectors(wanted)

    def work() -> None:
        ioctl.blkraset(os.open(path, os.O_RDONLY | os.O_CLOEXEC), sectors)

    number = Copy(work, name="nbdattach-io").wait(_SECONDS)
    if number:
        raise OSError(abs(number), os.strerror(abs(number)), "BLKRASET")
    return number is not None


def _sectors(size: int) -> int:
    page = os.sysconf("SC_PAGESIZE")
    return -(-size // page) * page // SECTOR


def _before(change: _Change | None, now: str) -> str | None:
    """What it was before an earlier attachment set it; None if that is not known, or if it was changed since."""
    return change.before if change and change.ours == now else None


def _unknown(device: Device, wanted: str, error: OSError) -> KernelRefused:
    if error.errno != errno.EINVAL:  # such as in a container, where /sys is read-only
        return KernelRefused.at(device.path, f"setting the scheduler {wanted}", error.errno or 0)
    names = ", ".join(Kernel(device).schedulers)
    cause = f"the kernel has no scheduler {wanted} for it"
    return KernelRefused(device.path, cause, f"it has {names or 'none'}; others may need a module")


# -- what is remembered ------------------------------------------------------------------------------------------------


def _load(device: Device) -> _Changes:
    driver = sysfs.driver_instance()
    with contextlib.suppress(OSError, ValueError):
        found = untrusted_json.made_of(_Changes, state.content_of(_path(device)))
        if found.driver == driver:
            return found
    return _Changes(driver)


def _save(device: Device, changes: _Changes, **changed: _Change | None) -> None:
    """Not saved if /run is full: then the setting stays with the device."""
    fields = {"driver": changes.driver, "scheduler": changes.scheduler, "read_ahead": changes.read_ahead, **changed}
    made = _Changes(**fields)  # type: ignore[arg-type]
    if made.scheduler or made.read_ahead:
        with contextlib.suppress(OSError):
            state.write(_path(device), as_dict(made))
    elif changes.scheduler or changes.read_ahead:
        bare_files.remove(_path(device))


def _path(device: Device) -> str:
    return f"{state.RUN}/{device.name}.queue"
