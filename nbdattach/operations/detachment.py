# SPDX-License-Identifier: GPL-2.0-or-later
"""Detaching: only a device that is not in use, only after its data is on the server; done only when the device is free.

The order of the steps: `claim` the device, bring all `writes` to the server, end the connections (`disconnection`), and
wait until the device is free. From the last look for writes until the device is empty, the kernel refuses all writes
(BLKROSET), and the message that ends the connection is ready to be sent. If a write still reaches the page cache, we
notice it afterwards and report it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from nbdattach.attached import state, tags
from nbdattach.attached.state import Identity
from nbdattach.attached.users import open_by, users_of
from nbdattach.attached.uses import opened, refusal
from nbdattach.backends import queue_choice
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, KernelRefused
from nbdattach.host import procfs, udev
from nbdattach.kernel import driver, sysfs
from nbdattach.kernel.node import Busy, Node
from nbdattach.kernel.sysfs import Kernel
from nbdattach.kernel.worker import GOODBYE_SECONDS
from nbdattach.monitor import control
from nbdattach.operations import claim, disconnection, writes
from nbdattach.operations.tidying import tidy_up_later
from nbdattach.own_server.end import end
from nbdattach.reporter import QUIET, Reporter, silent
from nbdattach.text import plain, quoted

_POLL = 0.01


def detach(
    device: Device,
    seconds: float,
    *,
    force: bool = False,
    only: Identity | None = None,
    only_tag: str | None = None,
    release: bool = False,
    reporter: Reporter = QUIET,
) -> str:
    """Detaches once it is safe; returns why there was nothing to do, or an empty text after it has detached.

    `seconds` limits the wait for the kernel, not for the server, because a slow flush is not a dead one. `only` and
    `only_tag` say which attachment is meant: if the device holds another one, we leave that alone. With `force` we
    detach it even while it is in use, and data that cannot be flushed is lost; `reporter` gets a message for each. With
    `release` its users are released first.

    Raises `DeviceInUse` if it is in use, `KernelRefused` if its data cannot be flushed; it then stays attached.
    """
    driver.refuse_other_systems()
    deadline = Deadline(seconds)
    if not Kernel(device).attached:
        if only is None and only_tag is None:
            _tidy_up(device, deadline)
        return "not attached"
    if other := nothing_to_do(device, only, only_tag):
        return other
    if release:
        from nbdattach.operations import release as releasing

        only = only or state.identity_of(device)  # it may take long, and another one may come meanwhile
        releasing.release(device, reporter, lambda above: detach(above, seconds, reporter=reporter))
        deadline = Deadline(seconds)
    with claim.taken(device, force, reporter.say) as node:
        if force and node.exclusive and not Kernel(device).attached:  # it was detached when we cut its connections
            node.clear(deadline)
            queue_choice.take_back(node)
            state.forget(device)
            return ""
        if other := nothing_to_do(device, only, only_tag):
            return other
        reporter.trace(f"{device.path}: claimed, flushing")
        writes.bring_to_rest(node, force, reporter)
        record, ended = state.load(device), state.identity_of(device)
        with control.hands_off(device, insist=not force):
            with _disconnected(node, force, ended, reporter.say) as lost:
                reporter.trace(f"{device.path}: disconnected")
                if force and users_of(device):  # unlike a process that gets an error, they do not go by themselves
                    deadline = Deadline(min(seconds, GOODBYE_SECONDS))
                _await_worker(device, deadline)
                node.clear(deadline)
                queue_choice.take_back(node)
            node.close()
            try:
                _await_free(device, ended[0], Deadline(min(seconds, GOODBYE_SECONDS)) if lost else deadline)
                state.forget_end(device, ended)
            except DeviceInUse:
                tidy_up_later(device, ended[0])
                if not lost:
                    raise
        _await_relay(record)
        if record and record.server:
            words = end(record.server, Deadline(max(seconds, GOODBYE_SECONDS)), kill=force)
            if words:
                reporter.say(f"{plain(record.server.name)}: its server says: {quoted(words)}")
    udev.settle([device.path], max(1.0, deadline.remaining()))
    if lost:
        cause = "detached, but the last writes of a program are lost"
        raise KernelRefused(device.path, cause, "stop programs that write to a device before you detach it")
    return ""


@contextlib.contextmanager
def _disconnected(node: Node, force: bool, ended: Identity, say: Callable[[str], None]) -> Iterator[bool]:
    """Ends the connection; the caller empties the device inside the context. Raises `DeviceInUse`, `KernelRefused`.

    The end of the attachment, `ended`, is noted at once: while a program keeps the device, all that follows may take
    long, and this command may be killed. Without `force` the kernel refuses all writes meanwhile. Yields whether the
    last writes are lost.
    """
    if force:
        disconnection.by_force(node, say)
        state.note_end(node.device, ended)
        yield False
        return
    with contextlib.ExitStack() as ready:
        farewell = disconnection.farewell_to(node.device, ready)
        ready.enter_context(node.closed_to_writers())
        if not Kernel(node.device).counts_requests:  # then we cannot tell whether there were any since the flush
            node.flush()
        if writes.was_written(node):  # the monitor may have been slow to let go, so look again
            raise writes.still_coming(node.device)
        if not disconnection.sent(farewell):
            node.disconnect()
        state.note_end(node.device, ended)
        lost = writes.are_lost(node)
        node.close_caches()
        yield lost


def nothing_to_do(device: Device, only: Identity | None, only_tag: str | None) -> str:
    """Why the device does not hold the attachment that is meant; empty if it does, or if a program keeps it there."""
    if not Kernel(device).attached:
        return "not attached"
    if only in (None, state.identity_of(device)) and (only_tag is None or tags.has_tag(device, only_tag)):
        return ""
    if state.end_of(device):
        return "not attached"
    return f"holds another attachment now ({quoted(tags.tag_of(device) or '?')})"


def _tidy_up(device: Device, deadline: Deadline) -> None:
    """Removes state that a killed worker left, or a detach that ended while a program had a partition open."""
    kernel = Kernel(device)
    if sysfs.exists(device) and (state.remembers(device) or kernel.partitions or kernel.size):
        with contextlib.suppress(Busy), claim.claimed_once(device, False, silent) as node:
            if not kernel.attached:
                state.forget(device)
                node.clear(Deadline(min(deadline.remaining(), GOODBYE_SECONDS)))
                queue_choice.take_back(node)


def _await_worker(device: Device, deadline: Deadline) -> None:
    """Waits for the process in NBD_DO_IT, which cleans up once the server has hung up. Not long for a silent server."""
    kernel = Kernel(device)
    pid = None if kernel.by_netlink else kernel.pid  # with netlink, the pid of a command that has long ended
    patience = Deadline(min(GOODBYE_SECONDS, deadline.remaining()))
    while pid and procfs.alive(pid) and patience.sleep(_POLL):
        pass


def _await_relay(record: state.Record | None) -> None:
    """Waits for the relay, which tells the server that it disconnects and ends once the monitor has let go of it."""
    patience = Deadline(GOODBYE_SECONDS + 1)
    while record and record.living_relay and patience.sleep(_POLL):
        pass


def _await_free(device: Device, pid: int | None, deadline: Deadline) -> None:
    """Waits until the device is free. Raises `DeviceInUse`.

    `pid` is the kernel's for the attachment that was detached: if another one is at the device, we do not wait for it.
    """
    kernel = Kernel(device)
    while kernel.pid in (None, pid) and (kernel.attached or kernel.size or kernel.inflight or kernel.partitions):
        if not deadline.sleep(_POLL):
            users = users_of(device).all + opened(open_by(device)).all
            cause = f"detached, but not free: {', '.join(one.use.says for one in users)}" if users else ""
            raise refusal(
                device,
                cause or "detached, but a program still has it open",
                "the kernel frees it when its last user releases it",
                [one.use for one in users],
            )
