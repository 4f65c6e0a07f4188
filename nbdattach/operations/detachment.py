# SPDX-License-Identifier: GPL-2.0-or-later
"""Detaching: only a device that is not in use, only after its data is on the server; done only when the device is free.

Decisions that matter:
* The exclusive claim (`node.Node.claim`) decides: it is atomic, and while we have it no program can begin to use the
  device. The lists of users explain a refusal, and add users without a claim: loop devices, and processes that have the
  device open.
* A process that opens the device only for a moment is no user. We refuse only if one has it open each time we look.
* To open a device can take as long as its server is silent, and no signal interrupts that. So another process opens it
  and passes the descriptor on, with the claim; the command itself never opens it.
* From the last look until the device is empty, the kernel refuses all writes (BLKROSET), and the message that ends the
  connection is ready to be sent. If a write still reaches the page cache, we notice it afterwards and report it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from nbdattach.attached import state
from nbdattach.attached.state import Identity
from nbdattach.attached.users import A_LOOK, in_use, kept_open_by, numbers_of, open_by, opened, serving_pid, users_of
from nbdattach.connection.client import silent
from nbdattach.connection.stream import Trace
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, KernelRefused, NbdattachError
from nbdattach.host import blocking, procfs, systemd, udev
from nbdattach.host.blocking import Opening, Unanswered
from nbdattach.host.spawn import bare_python, start_aside
from nbdattach.kernel import driver, sysfs
from nbdattach.kernel.flush import mark_unflushed
from nbdattach.kernel.node import Busy, Node, cannot_open
from nbdattach.kernel.sysfs import Kernel, identifier
from nbdattach.kernel.worker import GOODBYE_SECONDS
from nbdattach.monitor import control
from nbdattach.text import quoted

if TYPE_CHECKING:
    from nbdattach.kernel import netlink

DETACH_SECONDS = 60
# A healthy server flushes within so many seconds; with --force, we give up data that takes longer.
FORCE_SECONDS = 10
# Flushes of a device to which a program writes again and again.
_FLUSHES = 5
_POLL = 0.01


def detach(
    device: Device,
    seconds: float = DETACH_SECONDS,
    *,
    force: bool = False,
    only: Identity | None = None,
    only_tag: str | None = None,
    say: Callable[[str], None] = silent,
    progress: Callable[[float], None] = lambda _: None,
    trace: Trace = silent,
) -> str:
    """Detaches once it is safe; returns why there was nothing to do, or an empty text after it has detached.

    `seconds` limits the wait for the kernel, not for the server, because a slow flush is not a dead one. `only` and
    `only_tag` say which attachment is meant: if the device holds another one, we leave that alone. With `force` we
    detach it even while it is in use, and data that cannot be flushed is lost; `say` gets a message for each.
    `progress` is called during a long flush with the seconds that it has taken.

    Raises `DeviceInUse` if it is in use, `KernelRefused` if its data cannot be flushed; it then stays attached.
    """
    driver.refuse_other_systems()
    deadline = Deadline(seconds)
    if not Kernel(device).attached:
        if only is None and only_tag is None:
            _tidy_up(device, deadline)
        return "not attached"
    if other := _other_than(device, only, only_tag):
        return other
    with _taken(device, force, say) as node:
        if force and node.exclusive and not Kernel(device).attached:  # it was detached when we cut its connections
            node.clear(deadline)
            state.forget(device)
            return ""
        if other := _other_than(device, only, only_tag):
            return other
        trace(f"{device.path}: claimed, flushing")
        _bring_to_rest(node, force, say, progress)
        record, pid = state.load(device), Kernel(device).pid
        with control.hands_off(device, insist=not force):
            with _disconnected(node, force, say):
                trace(f"{device.path}: disconnected")
                if users_of(device):  # unlike a process that gets an error, they do not go by themselves
                    deadline = Deadline(min(seconds, GOODBYE_SECONDS))
                _await_worker(device, deadline)
                node.clear(deadline)
                state.forget(device)
            node.close()
            try:
                _await_free(device, pid, deadline)
            except DeviceInUse:
                _tidy_up_later(device, pid)
                raise
        _await_relay(record)
    udev.settle([device.path], max(1.0, deadline.remaining()))
    return ""


@contextlib.contextmanager
def _disconnected(node: Node, force: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Ends the connection; the caller empties the device inside the context. Raises `DeviceInUse`, `KernelRefused`.

    Without `force` the kernel refuses all writes meanwhile.
    """
    if force:
        _disconnect_by_force(node, say)
        yield
        return
    with contextlib.ExitStack() as ready:
        farewell = _farewell(node.device, ready)
        node.get_ready_to_look()
        ready.enter_context(node.closed_to_writers())
        if not Kernel(node.device).counts_requests:  # then we cannot tell whether there were any since the flush
            node.flush()
        if _was_written(node):  # the monitor may have been slow to let go, so look again
            raise _is_written(node.device)
        if not _sent(farewell):
            node.disconnect()
        lost = _is_lost(node)
        node.close_caches()
        yield
    if lost:
        cause = "detached, and what a program wrote to it in the last moment is lost"
        raise KernelRefused(node.device.path, cause, "stop the programs that write to it before it is detached")


def _is_lost(node: Node) -> bool:
    """Whether dirty pages are left that cannot be sent any more, because the connection has ended."""
    try:
        node.was_written(Deadline(FORCE_SECONDS))
    except (Unanswered, OSError):
        return True
    return False


def _other_than(device: Device, only: Identity | None, only_tag: str | None) -> str:
    """Why the device does not hold the attachment that is meant; empty if it does."""
    if not Kernel(device).attached:
        return "not attached"
    if only not in (None, state.identity_of(device)) or not (only_tag is None or _has_tag(device, only_tag)):
        return f"holds another attachment now ({quoted(tag_of(device) or '?')})"
    return ""


def _opened(device: Device, flags: int, force: bool, say: Callable[[str], None]) -> int:
    """Its descriptor. If a silent server delays that, `force` cuts its connections. Raises `Busy`, `KernelRefused`."""
    with Opening(flags, device.path) as opening:
        try:
            with contextlib.suppress(Unanswered):
                return opening.next(Deadline(FORCE_SECONDS))
            _cut_what_does_not_open(device, force, say)
            return opening.next(Deadline(FORCE_SECONDS))
        except Unanswered:
            cause = f"its connections were cut, and to open it still takes more than {FORCE_SECONDS} s"
            raise KernelRefused(device.path, cause, "end the programs that wait for it; see dmesg") from None
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Busy from None
            raise cannot_open(device, error) from None


def _cut_what_does_not_open(device: Device, force: bool, say: Callable[[str], None]) -> None:
    cause = f"its server does not answer: to open it takes more than {FORCE_SECONDS} s"
    if not force:
        raise KernelRefused(device.path, cause, "is the server up? --force cuts its connections")
    say(f"{device.path}: {cause}; its connections are cut, and what was not written is lost")
    with control.hands_off(device, insist=False):
        cut = _disconnect_stuck(device, say) if Kernel(device).by_netlink else _kill_server_process(device)
    if not cut:
        cause = "its connections cannot be cut"
        raise KernelRefused(device.path, cause, "end the process that serves it, or its server")


def _bring_to_rest(node: Node, force: bool, say: Callable[[str], None], progress: Callable[[float], None]) -> None:
    """On return, all written data is on the server and the device is not in use, both at the same moment.

    A flush may take long, so after each flush we look again for users without a claim and for new writes.
    """
    device = node.device
    if force:
        _flush(node, FORCE_SECONDS, say, progress)
        return
    if state.is_unflushed(device):
        cause = "what an earlier flush could not write is lost; the kernel tells that only once"
        raise KernelRefused(device.path, cause, "--force detaches all the same")
    _open_caches(node)
    for _ in range(_FLUSHES):
        _flush(node, None, say, progress)
        _refuse_what_claims_nothing(node)
        if not _was_written(node):
            return
    raise _is_written(device)


def _open_caches(node: Node) -> None:
    try:
        node.open_caches(Deadline(FORCE_SECONDS))
    except Unanswered:
        _cut_what_does_not_open(node.device, False, silent)
    except OSError as error:
        raise cannot_open(node.device, error) from None


def _was_written(node: Node) -> bool:
    """Whether a program wrote since the last flush; True if we cannot tell. Raises `KernelRefused`."""
    try:
        return node.was_written(Deadline(FORCE_SECONDS))
    except Unanswered:
        return True
    except OSError as error:  # the kernel reports a write error once only, so a later flush will not see it
        if Kernel(node.device).attached:
            with contextlib.suppress(OSError):
                mark_unflushed(*state.mark_of(node.device))
        hint = "nothing was detached; --force gives up what the server does not have"
        raise KernelRefused.at(node.device.path, "writing to the server", error.errno or 0, hint) from error


def _is_written(device: Device) -> DeviceInUse:
    return DeviceInUse(device.path, "somebody keeps writing to it", "fuser -v may tell who")


def tag_of(device: Device) -> str | None:
    """The tag of the attachment at the device; None if it has none."""
    record = state.load(device)
    return record.tag if record else Kernel(device).backend


def _has_tag(device: Device, tag: str) -> bool:
    """Whether the attachment has this tag; if we have no record, by the part of a tag that the kernel keeps."""
    record = state.load(device)
    return record.tag == tag if record else Kernel(device).backend == identifier(tag).strip()


def attached_as(*, tag: str | None = None, target: str | None = None) -> list[Device]:
    """Devices with an attachment of this tag, or of this target's URI. Raises `KernelRefused` without permission."""
    state.refuse_hidden()
    found = []
    for device in sysfs.devices():
        if Kernel(device).attached:
            record = state.load(device)
            if (tag is not None and _has_tag(device, tag)) or (
                target is not None and record is not None and record.target == target
            ):
                found.append(device)
    return found


def _taken(device: Device, force: bool, say: Callable[[str], None]) -> Node:
    """The device, claimed for us alone; with `force`, shared with its users if it has any."""
    try:
        node = _claimed(device, force, say)
        try:
            _refuse_what_claims_nothing(node)
        except BaseException:
            node.close()
            raise
        return node
    except DeviceInUse as error:
        if not force:
            raise
        say(f"{device.path}: detached under its users: {error.cause}")
        for line in error.users:
            say(f"  {line}")
        return Node.shared(device, _opened(device, os.O_RDONLY, force, say))


def _claimed(device: Device, force: bool, say: Callable[[str], None]) -> Node:
    """Claims the device. Raises `DeviceInUse`: at once if we know its users, otherwise after some time."""
    patience = Deadline(A_LOOK)
    while True:
        try:
            return _claimed_once(device, force, say)
        except Busy:
            users = users_of(device)
            if users or not patience.sleep(_POLL):
                raise in_use(device, users) from None


def _claimed_once(device: Device, force: bool, say: Callable[[str], None]) -> Node:
    """Raises `Busy`, `KernelRefused`."""
    return Node.claimed(device, _opened(device, os.O_RDONLY | os.O_EXCL, force, say))


def _refuse_what_claims_nothing(node: Node) -> None:
    """Raises `DeviceInUse` if loop devices use the device, or processes keep it open for longer than a probe does."""
    device = node.device
    users = users_of(device)
    if users:
        raise in_use(device, users)
    there = kept_open_by(device, node.fd, *node.caches)
    if there:
        raise in_use(device, opened(there))


def _flush(node: Node, patience: float | None, say: Callable[[str], None], progress: Callable[[float], None]) -> None:
    """Flushes. With `patience`, in seconds, data that is not on the server by then is given up."""
    mark: tuple[str, ...] = ()
    if patience is None:
        with contextlib.suppress(OSError):
            mark = state.mark_of(node.device)
    try:
        node.flush(patience, progress, mark)
    except KernelRefused as error:
        if patience is None:
            raise
        say(f"{error}: what was written and is not there is lost")


def _farewell(device: Device, stack: contextlib.ExitStack) -> netlink.Farewell | None:
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


def _sent(farewell: netlink.Farewell | None) -> bool:
    """Sends the message; returns whether the kernel has carried it out."""
    try:
        if farewell:
            farewell.send()
    except OSError:
        return False
    return farewell is not None


def _disconnect_by_force(node: Node, say: Callable[[str], None]) -> None:
    device = node.device
    if Kernel(device).by_netlink and _disconnect_stuck(device, say):
        return
    try:
        node.disconnect_within(Deadline(GOODBYE_SECONDS))
    except Unanswered:
        say(f"{device.path}: the server reads nothing any more: its connections are cut")
        _kill_server_process(device)  # then the blocked call goes on


def _disconnect_stuck(device: Device, say: Callable[[str], None]) -> bool:
    """Detaches by the netlink message, because NBD_CLEAR_SOCK waits for requests that wait for a new connection.

    The message wakes those requests. False if it is not available. If the driver is stuck in sending to a server that
    reads nothing, the kernel waits, with the lock of generic netlink; the monitor can end such a connection.
    Raises `KernelRefused`.
    """
    with contextlib.ExitStack() as stack:
        farewell = _farewell(device, stack)
        if farewell is None:
            return False
        sending = blocking.Sending(farewell.fileno(), farewell.data)
        try:
            try:
                sending.wait(Deadline(GOODBYE_SECONDS))
            except Unanswered:
                say(f"{device.path}: the server reads nothing any more: its connections are cut")
                with contextlib.suppress(NbdattachError):
                    control.cut(device)
                sending.wait(Deadline(FORCE_SECONDS))
            farewell.read_answer()
        except Unanswered:
            cause = "the driver is stuck in sending to a server that reads nothing, and no monitor knows the connection"
            raise KernelRefused(
                device.path, cause, "end the server, or wait until TCP gives the connection up"
            ) from None
        except OSError:
            return False
    return True


def _kill_server_process(device: Device) -> bool:
    """Kills the process in NBD_DO_IT, which makes the kernel shut the connections down. False if we cannot find it."""
    pid = serving_pid(device)
    if not pid or not procfs.has_open(procfs.group_of(pid), numbers_of(device)):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return True


def _tidy_up(device: Device, deadline: Deadline) -> None:
    """Removes state that a killed worker left, or a detach that ended while a program had a partition open."""
    kernel = Kernel(device)
    if sysfs.exists(device) and (state.remembers(device) or kernel.partitions or kernel.size):
        with contextlib.suppress(Busy), _claimed_once(device, False, silent) as node:
            if not kernel.attached:
                state.forget(device)
                node.clear(Deadline(min(deadline.remaining(), GOODBYE_SECONDS)))


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


def _tidy_up_later(device: Device, pid: int | None) -> None:
    """Starts a process that waits for the last user to go and removes the partitions, because the kernel keeps them."""
    command = bare_python("kernel.leftovers", "tidy_main", device.path, state.path(device), str(pid or ""))
    with contextlib.suppress(OSError):
        systemd.give_scope(start_aside(command, own_session=True).pid, "nbdattach-tidy")


def _await_free(device: Device, pid: int | None, deadline: Deadline) -> None:
    """Waits until the device is free. Raises `DeviceInUse`.

    `pid` is the kernel's for the attachment that was detached: if another one is at the device, we do not wait for it.
    """
    kernel = Kernel(device)
    while kernel.pid in (None, pid) and (kernel.attached or kernel.size or kernel.inflight or kernel.partitions):
        if not deadline.sleep(_POLL):
            users = users_of(device).all + opened(open_by(device)).all
            cause = f"detached, but not free: {', '.join(one.says for one in users)}" if users else ""
            raise DeviceInUse(
                device.path,
                cause or "detached, but something still has it open",
                "the kernel frees it when that has let go",
                [f"{one.says}: {one.release}" for one in users],
            )
