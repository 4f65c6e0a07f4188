# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends the connections of a device: by one message, or by force, even if the server is silent."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from nbdattach.attached.users import numbers_of, serving_pid
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import KernelRefused, NbdattachError
from nbdattach.host import blocking, open_files, procfs, their_sockets
from nbdattach.host.blocking import Unanswered
from nbdattach.kernel.node import Node
from nbdattach.kernel.sysfs import Kernel
from nbdattach.kernel.worker import GOODBYE_SECONDS
from nbdattach.monitor import control

if TYPE_CHECKING:
    from nbdattach.kernel import netlink

# A healthy server flushes within so many seconds; with --force, we give up data that takes longer.
FORCE_SECONDS = 10


def farewell_to(device: Device, stack: contextlib.ExitStack) -> netlink.Farewell | None:
    """The message that detaches a netlink device in one step; None if there is none.

    With two steps, a kill after NBD_DISCONNECT would leave a device that is attached and has no connection: the next
    disconnect could not flush it, and would refuse.
    """
    if not Kernel(device).by_netlink:
        return None
    try:
        from nbdattach.kernel import netlink

        with netlink.Family() as family:
            return stack.enter_context(family.farewell(device.index))
    except (ImportError, OSError):
        return None


def sent(farewell: netlink.Farewell | None) -> bool:
    """Sends the message; returns whether the kernel has carried it out."""
    try:
        if farewell:
            farewell.send()
    except OSError:
        return False
    return farewell is not None


def by_force(node: Node, say: Callable[[str], None]) -> None:
    device = node.device
    if Kernel(device).by_netlink and _by_message(device, say):
        return
    try:
        node.disconnect_within(Deadline(GOODBYE_SECONDS))
    except Unanswered:
        say(f"{device.path}: the server reads no data: cutting its connections")
        _kill_server_process(device)  # then the blocked call goes on


def cut_what_does_not_open(device: Device, force: bool, say: Callable[[str], None]) -> None:
    cause = f"its server does not answer: the device cannot be opened within {FORCE_SECONDS} s"
    if not force:
        raise KernelRefused(device.path, cause, "is the server up? --force cuts its connections")
    say(f"{device.path}: {cause}; cutting its connections; unwritten data is lost")
    with control.hands_off(device, insist=False):
        cut = _by_message(device, say) if Kernel(device).by_netlink else _kill_server_process(device)
    if not cut:
        cause = "its connections cannot be cut"
        raise KernelRefused(device.path, cause, "end the process that serves it, or its server")


def _by_message(device: Device, say: Callable[[str], None]) -> bool:
    """Detaches by the netlink message, because NBD_CLEAR_SOCK waits for requests that wait for a new connection.

    The message wakes those requests. False if it is not available. If the driver is stuck in sending to a server that
    reads nothing, the kernel waits, with the lock of generic netlink; the monitor can end such a connection.
    Raises `KernelRefused`.
    """
    with contextlib.ExitStack() as stack:
        farewell = farewell_to(device, stack)
        if farewell is None:
            return False
        sending = blocking.Sending(farewell.fileno(), farewell.data)
        try:
            try:
                sending.wait(Deadline(GOODBYE_SECONDS))
            except Unanswered:
                say(f"{device.path}: the server reads no data: cutting its connections")
                with contextlib.suppress(NbdattachError):
                    control.cut(device)
                sending.wait(Deadline(FORCE_SECONDS))
            farewell.read_answer()
        except Unanswered:
            cause = "the driver is blocked sending to a server that reads no data, and no monitor holds the connection"
            raise KernelRefused(
                device.path, cause, "end the server, or wait until TCP gives the connection up"
            ) from None
        except OSError:
            return False
    return True


def _kill_server_process(device: Device) -> bool:
    """Kills the process in NBD_DO_IT, which makes the kernel shut the connections down. False if we cannot find it.

    The kernel takes the lock of a connection to shut it down (sock_shutdown in nbd.c). While one of its own threads
    sends to a server that reads nothing, it waits for that lock, for ever, and so the killed process does not end. Then
    we shut the connections down ourselves, through duplicates of its sockets. Not before that: if the process leaves
    NBD_DO_IT because its connections have ended, the kernel does not fail the requests in flight.
    """
    pid = procfs.group_of(serving_pid(device) or 0)
    return bool(pid) and their_sockets.kill(pid, lambda: open_files.has_open(pid, numbers_of(device)))
