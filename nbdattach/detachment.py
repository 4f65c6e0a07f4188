# SPDX-License-Identifier: GPL-2.0-or-later
"""Detaching: only what nobody uses, only after its data is on the server, and done only when the device is free.

Decisions that matter:
* The exclusive claim (`node.Node.claim`) is what refuses: atomic, and nobody can begin to use what is about to go. The
  lists of users only explain it, and add what claims nothing: loop devices, and processes that have the device open.
* Whoever opens the device for a moment only is no user. A refusal needs somebody who is there each time we look.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable

from nbdattach import control, driver, process, state, sysfs, udev
from nbdattach.client import silent
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, KernelRefused, NbdattachError
from nbdattach.node import Busy, Node, Unanswered
from nbdattach.state import Identity
from nbdattach.stream import Trace
from nbdattach.sysfs import Kernel, identifier
from nbdattach.users import A_LOOK, in_use, kept_open_by, numbers_of, open_by, opened, serving_pid, users_of
from nbdattach.wiretext import quoted
from nbdattach.worker import GOODBYE_SECONDS, mark_unflushed

DETACH_SECONDS = 60
# What a server that is there needs at most for a flush, when its data may be given up.
FORCE_SECONDS = 10
# Of a device to which somebody writes again and again.
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
    """Detaches once it is safe; why there was nothing to do, empty where it has been done.

    `seconds` bound the wait for the kernel, not that for the server: a slow flush is not a dead one. `only` and
    `only_tag` say which attachment is meant: where another one has come to the device, it is left alone. With `force`
    it goes under its users, and what cannot be flushed is lost; `say` tells each. `progress` is called during a long
    flush with the seconds that it has taken.

    Raises `DeviceInUse` while anybody uses it, `KernelRefused` where its data cannot be flushed; it then stays.
    """
    driver.refuse_other_systems()
    deadline = Deadline(seconds)
    if not Kernel(device).attached:
        if only is None and only_tag is None:
            _tidy_up(device, deadline)
        return "not attached"
    if other := _other_than(device, only, only_tag):
        return other
    cut = _see_it_opens(device, force, say)
    with _taken(device, force, say) as node:
        if cut and not Kernel(device).attached:
            node.clear(deadline)
            state.forget(device)
            return ""
        if other := _other_than(device, only, only_tag):
            return other
        trace(f"{device.path}: claimed, flushing")
        _bring_to_rest(node, force, say, progress)
        record, pid = state.load(device), Kernel(device).pid
        with control.hands_off(device, insist=not force):
            if not force and _has_written(node):  # the monitor may have taken its time
                raise _is_written(device)
            _disconnect(node, force, say)
            trace(f"{device.path}: disconnected")
            if users_of(device):  # they do not go by themselves, as a process may that gets an error
                deadline = Deadline(min(seconds, GOODBYE_SECONDS))
            _await_worker(device, deadline)
            node.clear(deadline)
            state.forget(device)
            node.close()
            _await_free(device, pid, deadline)
        _await_relay(record)
    udev.settle([device.path], max(1.0, deadline.remaining()))
    return ""


def _other_than(device: Device, only: Identity | None, only_tag: str | None) -> str:
    """Why it is not what is meant; empty where it is."""
    if not Kernel(device).attached:
        return "not attached"
    if only not in (None, state.identity_of(device)) or not (only_tag is None or _has_tag(device, only_tag)):
        return f"holds another attachment now ({quoted(tag_of(device) or '?')})"
    return ""


def _see_it_opens(device: Device, force: bool, say: Callable[[str], None]) -> bool:
    """To open it may wait for its server without end, and nothing can interrupt that; so another process tries first.

    With `force` what keeps it waiting is cut; whether it was. Raises `KernelRefused`.
    """
    nothing = subprocess.DEVNULL  # should it outlive us, nobody who reads what we say waits for it
    opening = subprocess.Popen(["/bin/sh", "-c", ': <"$0"', device.path], stdin=nothing, stdout=nothing, stderr=nothing)
    with contextlib.suppress(subprocess.TimeoutExpired):
        opening.wait(FORCE_SECONDS)
        return False
    cause = f"its server does not answer: to open it takes more than {FORCE_SECONDS} s"
    if not force:
        raise KernelRefused(device.path, cause, "is the server up? --force cuts its connections")
    say(f"{device.path}: {cause}; its connections are cut, and what was not written is lost")
    with control.hands_off(device, insist=False):
        cut = _disconnect_by_message(device) if Kernel(device).by_netlink else _kill_server_process(device)
    with contextlib.suppress(subprocess.TimeoutExpired):
        if cut:
            opening.wait(FORCE_SECONDS)
            return True
    raise KernelRefused(device.path, "its connections cannot be cut", "end the process that serves it, or its server")


def _bring_to_rest(node: Node, force: bool, say: Callable[[str], None], progress: Callable[[float], None]) -> None:
    """All that was written is on the server, and nobody uses it; both at the same time, though a flush may take long.

    What claims nothing, and what was written, is looked for again after each flush.
    """
    device = node.device
    if force:
        _flush(node, FORCE_SECONDS, say, progress)
        return
    if state.is_unflushed(device):
        cause = "what an earlier flush could not write is lost; the kernel tells that only once"
        raise KernelRefused(device.path, cause, "--force detaches all the same")
    for _ in range(_FLUSHES):
        _flush(node, None, say, progress)
        _refuse_what_claims_nothing(device, node.fd)
        if not _has_written(node):
            return
    raise _is_written(device)


def _has_written(node: Node) -> bool:
    """Whether anything had to be written since the last flush; in doubt: yes. Raises `KernelRefused`."""
    try:
        return node.write_back(Deadline(FORCE_SECONDS))
    except Unanswered:
        return True
    except OSError as error:  # the kernel has told it now, and will not tell it to a flush
        if Kernel(node.device).attached:
            with contextlib.suppress(OSError):
                mark_unflushed(*state.mark_of(node.device))
        hint = "nothing was detached; --force gives up what the server does not have"
        raise KernelRefused.at(node.device.path, "writing to the server", error.errno or 0, hint) from error


def _is_written(device: Device) -> DeviceInUse:
    return DeviceInUse(device.path, "somebody keeps writing to it", "fuser -v may tell who")


def tag_of(device: Device) -> str | None:
    """The identity of what is attached there; None where nobody gave it one."""
    record = state.load(device)
    return record.tag if record else Kernel(device).backend


def _has_tag(device: Device, tag: str) -> bool:
    """Where we have no record of it, by what the kernel keeps of a tag."""
    record = state.load(device)
    return record.tag == tag if record else Kernel(device).backend == identifier(tag).strip()


def attached_as(*, tag: str | None = None, target: str | None = None) -> list[Device]:
    """Where something of this tag, or of this target's URI, is attached. Raises `KernelRefused` without permission."""
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
    """The device, claimed for us alone; with `force` shared with its users, when there are any."""
    try:
        node = _claimed(device)
        try:
            _refuse_what_claims_nothing(device, node.fd)
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
        return Node.share(device)


def _claimed(device: Device) -> Node:
    """Raises `DeviceInUse`, at once where users are known, else when nothing changes for a while."""
    patience = Deadline(A_LOOK)
    while True:
        try:
            return Node.claim(device)
        except Busy:
            users = users_of(device)
            if users or not patience.sleep(_POLL):
                raise in_use(device, users) from None


def _refuse_what_claims_nothing(device: Device, own_fd: int) -> None:
    """Loop devices, and processes that have the device open for longer than a look at it."""
    users = users_of(device)
    if users:
        raise in_use(device, users)
    there = kept_open_by(device, own_fd)
    if there:
        raise in_use(device, opened(there))


def _flush(node: Node, patience: float | None, say: Callable[[str], None], progress: Callable[[float], None]) -> None:
    """With `patience`, in seconds, what is not there by then is given up."""
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


def _disconnect(node: Node, force: bool, say: Callable[[str], None]) -> None:
    if not force:
        if not _disconnect_by_message(node.device):
            node.disconnect()
        return
    try:
        node.disconnect_within(Deadline(GOODBYE_SECONDS))
    except Unanswered:
        say(f"{node.device.path}: the server reads nothing any more: its connections are cut")
        _cut(node.device)  # which lets that call go on


def _disconnect_by_message(device: Device) -> bool:
    """What was attached by netlink goes in one step, which a kill cannot split; False where that is not possible.

    Killed after NBD_DISCONNECT, we would leave a device that is attached and has no connection: the next disconnect
    could not flush it, and refuse.
    """
    if not Kernel(device).by_netlink:
        return False
    try:
        from nbdattach import netlink

        with netlink.Family() as family:
            family.disconnect(device.index)
    except (ImportError, OSError):
        return False
    return True


def _cut(device: Device) -> None:
    """Ends the connections from our side, as far as that can be done."""
    if Kernel(device).by_netlink:
        with contextlib.suppress(NbdattachError):
            control.cut(device)
    else:
        _kill_server_process(device)


def _kill_server_process(device: Device) -> bool:
    """A signal to the process in NBD_DO_IT makes the kernel shut the connections down. False where it is not known."""
    pid = serving_pid(device)
    if not pid or not process.has_open(process.group_of(pid), numbers_of(device)):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return True


def _tidy_up(device: Device, deadline: Deadline) -> None:
    """What a killed worker could not take away, nor a detach while somebody had a partition open."""
    kernel = Kernel(device)
    if sysfs.exists(device) and (state.remembers(device) or kernel.partitions or kernel.size):
        with contextlib.suppress(Busy), Node.claim(device) as node:
            if not kernel.attached:
                state.forget(device)
                node.clear(Deadline(min(deadline.remaining(), GOODBYE_SECONDS)))


def _await_worker(device: Device, deadline: Deadline) -> None:
    """The process in NBD_DO_IT cleans up by itself when the server has hung up; a silent server is not waited for."""
    kernel = Kernel(device)
    pid = None if kernel.by_netlink else kernel.pid  # with netlink, that of a command which has long ended
    patience = Deadline(min(GOODBYE_SECONDS, deadline.remaining()))
    while pid and process.alive(pid) and patience.sleep(_POLL):
        pass


def _await_relay(record: state.Record | None) -> None:
    """It takes its leave of the server, and ends when the monitor has let go of it, too."""
    patience = Deadline(GOODBYE_SECONDS + 1)
    while record and record.living_relay and patience.sleep(_POLL):
        pass


def _await_free(device: Device, pid: int | None, deadline: Deadline) -> None:
    """Raises `DeviceInUse`. `pid` is the kernel's for what was detached: another one's device is not waited for."""
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
