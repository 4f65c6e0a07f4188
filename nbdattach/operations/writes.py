# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs have written to a device that is about to be detached: flushed, and noticed if it comes after that."""

from __future__ import annotations

import contextlib

from nbdattach.attached import state
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, KernelRefused
from nbdattach.host import upgrade
from nbdattach.host.blocking import Killed, Unanswered
from nbdattach.kernel.flush import mark_unflushed
from nbdattach.kernel.node import Node, cannot_open
from nbdattach.kernel.sysfs import Kernel
from nbdattach.operations import claim, disconnection
from nbdattach.operations.disconnection import FORCE_SECONDS
from nbdattach.reporter import Reporter, silent

# Flushes of a device to which a program writes again and again.
_FLUSHES = 5
# Seconds: a flush may take hours, and is not likely to end soon if it takes longer than this.
_LONG = 5.0


def bring_to_rest(node: Node, force: bool, reporter: Reporter) -> None:
    """On return, all written data is on the server and the device is not in use, both at the same moment.

    A flush may take long, so after each flush we look again for users without a claim and for new writes.
    """
    device = node.device
    if force:
        _flush(node, FORCE_SECONDS, reporter)
        return
    if state.is_unflushed(device):
        cause = "an earlier flush failed and lost data; the kernel reports that only once"
        raise KernelRefused(device.path, cause, "--force detaches it anyway")
    _open_caches(node)
    for _ in range(_FLUSHES):
        _flush(node, None, reporter)
        claim.refuse_users_without_claim(node)
        if not was_written(node):
            return
    raise still_coming(device)


def _flush(node: Node, patience: float | None, reporter: Reporter) -> None:
    """Flushes. With `patience`, in seconds, data that is not on the server by then is given up."""
    mark: tuple[str, ...] = ()
    if patience is None:
        with contextlib.suppress(OSError):
            mark = state.mark_of(node.device)

    def progress(seconds: float) -> None:
        if patience is None and seconds > _LONG:  # its files may be on a disk that is away, too, and take for ever
            upgrade.load_all()
        reporter.progress(seconds)

    try:
        node.flush(patience, progress, mark)
    except KernelRefused as error:
        if patience is None:
            raise
        reporter.say(f"{error}: data that is not on the server is lost")


def _open_caches(node: Node) -> None:
    try:
        node.open_caches(Deadline(FORCE_SECONDS))
    except Unanswered:
        disconnection.cut_what_does_not_open(node.device, False, silent)
    except Killed:
        raise _look_was_killed(node.device) from None
    except OSError as error:
        raise cannot_open(node.device, error) from None


def was_written(node: Node) -> bool:
    """Whether a program wrote since the last flush; True if we cannot tell. Raises `KernelRefused`."""
    try:
        return node.was_written(Deadline(FORCE_SECONDS))
    except Unanswered:
        return True
    except Killed:
        raise _look_was_killed(node.device) from None
    except OSError as error:  # the kernel reports a write error once only, so a later flush will not see it
        if Kernel(node.device).attached:
            with contextlib.suppress(OSError):
                mark_unflushed(*state.mark_of(node.device))
        hint = "nothing was detached; --force detaches and loses unwritten data"
        raise KernelRefused.at(node.device.path, "writing to the server", error.errno or 0, hint) from error


def are_lost(node: Node) -> bool:
    """Whether dirty pages are left that cannot be sent any more, because the connection has ended."""
    try:
        node.was_written(Deadline(FORCE_SECONDS))
    except (Unanswered, Killed, OSError):  # in doubt, they are
        return True
    return False


def _look_was_killed(device: Device) -> KernelRefused:
    cause = "a process of ours that looks for its last writes was killed"
    return KernelRefused(device.path, cause, "nothing was detached; try again")


def still_coming(device: Device) -> DeviceInUse:
    return DeviceInUse(device.path, "a program keeps writing to it", "fuser -v may show it")
