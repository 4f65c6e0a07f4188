# SPDX-License-Identifier: GPL-2.0-or-later
"""Claims a device to detach it: for us alone, or with --force together with its users.

* The exclusive claim (`node.Node.claim`) decides: it is atomic, and while we have it no program can begin to use the
  device. The lists of users explain a refusal, and add users without a claim: loop devices, and processes that have the
  device open.
* A process that opens the device only for a moment is no user. We refuse only if one has it open each time we look.
* To open a device can take as long as its server is silent, and no signal interrupts that. So another process opens it
  and passes the descriptor on, with the claim; the command itself never opens it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable

from nbdattach.attached.users import A_LOOK, in_use, kept_open_by, users_of
from nbdattach.attached.uses import opened
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, KernelRefused
from nbdattach.host.blocking import Killed, Opening, Unanswered
from nbdattach.kernel.node import Busy, Node, cannot_open
from nbdattach.operations import disconnection
from nbdattach.operations.disconnection import FORCE_SECONDS
from nbdattach.reporter import silent

_POLL = 0.01


def taken(device: Device, force: bool, say: Callable[[str], None]) -> Node:
    """The device, claimed for us alone; with `force`, shared with its users if it has any."""
    try:
        node = _claimed(device, force, say)
        try:
            refuse_users_without_claim(node, say)
        except BaseException:
            node.close()
            raise
        return node
    except DeviceInUse as error:
        if not force:
            raise
        say(f"{device.path}: detached although in use: {error.cause}")
        for line in error.users:
            say(f"  {line}")
        return Node.shared(device, _opened(device, os.O_RDONLY, force, say))


def _claimed(device: Device, force: bool, say: Callable[[str], None]) -> Node:
    """Claims the device. Raises `DeviceInUse`: at once if we know its users, otherwise after some time."""
    patience = Deadline(A_LOOK)
    while True:
        try:
            return claimed_once(device, force, say)
        except Busy:
            users = users_of(device)
            if users or not patience.sleep(_POLL):
                raise in_use(device, users) from None


def claimed_once(device: Device, force: bool, say: Callable[[str], None]) -> Node:
    """Raises `Busy`, `KernelRefused`."""
    return Node.claimed(device, _opened(device, os.O_RDONLY | os.O_EXCL, force, say))


def _opened(device: Device, flags: int, force: bool, say: Callable[[str], None]) -> int:
    """Its descriptor. If a silent server delays that, `force` cuts its connections. Raises `Busy`, `KernelRefused`."""
    with Opening(flags, device.path) as opening:
        try:
            with contextlib.suppress(Unanswered):
                return opening.wait(Deadline(FORCE_SECONDS))
            disconnection.cut_what_does_not_open(device, force, say)
            return opening.wait(Deadline(FORCE_SECONDS))
        except Unanswered:
            cause = f"its connections were cut, but it still cannot be opened within {FORCE_SECONDS} s"
            raise KernelRefused(device.path, cause, "end the programs that wait for it; see dmesg") from None
        except Killed:
            raise KernelRefused(device.path, "a process of ours that opens it was killed", "try again") from None
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Busy from None
            raise cannot_open(device, error) from None


def refuse_users_without_claim(node: Node, say: Callable[[str], None] = silent) -> None:
    """Raises `DeviceInUse` if loop devices use the device, or processes keep it open for longer than a probe does.

    `say` gets a message if that is not known of a process.
    """
    device = node.device
    users = users_of(device)
    if users:
        raise in_use(device, users)
    there = kept_open_by(device, node.fd, helpers=node.helpers, say=say)
    if there:
        raise in_use(device, opened(there))
