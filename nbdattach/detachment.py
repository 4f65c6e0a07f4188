"""Detaching: only what nobody uses, only after its data is on the server, and done only when the device is free."""

from __future__ import annotations

from contextlib import suppress

from nbdattach import control, driver, state, sysfs, udev
from nbdattach.client import silent
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, KernelRefused
from nbdattach.node import Busy, Node
from nbdattach.process import alive
from nbdattach.stream import Trace
from nbdattach.sysfs import Kernel
from nbdattach.users import in_use, users_of
from nbdattach.worker import GOODBYE_SECONDS

DETACH_SECONDS = 60
# What a server that is there needs at most for a flush, when its data may be given up.
FORCE_SECONDS = 10
_POLL = 0.01


def detach(
    device: Device,
    seconds: float = DETACH_SECONDS,
    trace: Trace = silent,
    expected: int | None = None,
    force: bool = False,
) -> bool:
    """Detaches once it is safe; True when there was something to detach. With `force`, what cannot be flushed is lost.

    `seconds` bound the wait for the kernel, not that for the server: a slow flush is not a dead one. `expected` is
    the kernel's pid of the attachment that is meant; where another one has come to the device, it is left alone.

    Raises `DeviceInUse` while anybody uses it, `KernelRefused` where its data cannot be flushed; it then stays.
    """
    driver.refuse_other_systems()
    if not Kernel(device).attached:
        _tidy_up(device)
        return False
    deadline = Deadline(seconds)
    try:
        node = Node.claim(device)
    except Busy:
        raise in_use(device) from None
    with node:
        if expected not in (None, Kernel(device).pid):
            return False
        if users_of(device):  # loop devices hold nothing exclusively
            raise in_use(device)
        trace(f"{device.path}: claimed, flushing")
        _flush(node, force, trace)
        with control.hands_off(device):
            node.disconnect()
            trace(f"{device.path}: NBD_DISCONNECT")
            _await_worker(device, deadline)
            node.clear(deadline)
            state.forget(device)
            node.close()
            _await_free(device, deadline)
    udev.settle(max(1.0, deadline.remaining()))
    return True


def _flush(node: Node, force: bool, trace: Trace) -> None:
    try:
        node.flush(FORCE_SECONDS if force else None)
    except KernelRefused as error:
        if not force:
            raise
        trace(f"{error}; given up, as --force says")


def _tidy_up(device: Device) -> None:
    """What a killed worker could not take away, nor a detach while somebody had a partition open."""
    kernel = Kernel(device)
    if sysfs.exists(device) and (state.remembers(device) or kernel.partitions):
        with suppress(Busy), Node.claim(device) as node:
            if not kernel.attached:
                state.forget(device)
                node.scan_partitions(Deadline(DETACH_SECONDS))


def _await_worker(device: Device, deadline: Deadline) -> None:
    """The process in NBD_DO_IT cleans up by itself when the server has hung up; a silent server is not waited for."""
    kernel = Kernel(device)
    pid = None if kernel.by_netlink else kernel.pid  # with netlink, that of a command which has long ended
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
