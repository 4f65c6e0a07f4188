# SPDX-License-Identifier: GPL-2.0-or-later
"""Attaching: the order of the steps, and how each is undone.

Decisions that matter:
* The exclusive claim on the node is the lock: the kernel grants it to one process, refuses it while the device is in
  use, and releases it when we die. No lock file can do that.
* A backend undoes everything unless we commit, when the attachment is complete. So a connect that fails, or is
  killed at any moment, leaves nothing behind.
* The kernel decides between us and foreign tools: the second process gets EBUSY and looks for another device.
* The monitor watches the device before the attachment is complete. So at whichever moment the command ends, it never
  leaves a device attached without a monitor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from nbdattach.attached import state
from nbdattach.backends import choice, limits, queue_choice
from nbdattach.backends.base import Hold, Job, Spent, Taken
from nbdattach.clock import now
from nbdattach.connect_options import DEFAULT_ON_LOSS, FOREVER, ConnectOptions
from nbdattach.connection import client
from nbdattach.connection.stream import address_of
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import (
    ConnectionLost,
    DeadlinePassed,
    KernelRefused,
    NbdattachError,
)
from nbdattach.host import udev
from nbdattach.host.procfs import alive, started
from nbdattach.kernel import driver, settings, sysfs
from nbdattach.kernel.node import Busy, Unanswered
from nbdattach.kernel.sysfs import Kernel
from nbdattach.monitor import control, launch
from nbdattach.operations import candidates, interrupts, remarks
from nbdattach.operations.alone import alone_with, alone_with_all
from nbdattach.operations.connections import connected
from nbdattach.operations.handle import Attachment
from nbdattach.operations.tidying import tidy_up_later
from nbdattach.operations.turns import TURNS
from nbdattach.operations.twice import Wanted
from nbdattach.protocol.target import Target, others
from nbdattach.relay import dialer
from nbdattach.reporter import QUIET, Reporter

if TYPE_CHECKING:
    from socket import socket

    from nbdattach.relay.dialer import Relay

SETTLE_SECONDS = 60
# If the server has hung up, the worker ends in milliseconds; allow it this long.
_LAST_GASP = 2.0
_CLEAR_SECONDS = 5.0
# Attempts if other programs take the device down while we attach it.
_ATTEMPTS = 5


def attach(target: Target, device: Device | None, options: ConnectOptions, reporter: Reporter = QUIET) -> Attachment:
    """Attaches the target's export at `device`, or at a free one. On return the device is ready to use.

    Raises `NbdattachError`; then nothing is attached and nothing left behind.
    """
    tag = options.tag or target.uri
    driver.refuse_other_systems()
    there = _already_there(tag, target, device, options)
    if there:
        return there
    require_possible(target, options)
    driver.ensure_loaded()
    if target.tls and options.tls_transport != "relay":
        driver.load_tls()
    backend = choice.choose(options)
    notes: list[str] = []
    if backend.name == "netlink":
        options, notes = choice.no_less_safe_than_one(options)
    for attempt in range(_ATTEMPTS):
        with suppress(Spent), ExitStack() as end:
            attached = _attach(target, device, options, tag, backend, reporter, contested=attempt > 0, end=end)
            attached.notes = (*(f"{target.uri}: {note}" for note in notes), *attached.notes)
            return attached
        reporter.trace("another program opened and closed the device, which detached it; trying again")
    raise candidates.none_free(device, backend.makes_devices)


def require_possible(target: Target, options: ConnectOptions) -> None:
    """Raises the errors that need neither the driver nor a server: options that conflict, files that are no good."""
    choice.require_possible(options)
    for one in [target, *others(target, options.also)]:
        if not one.tls:
            continue
        if options.raw_size is not None:
            raise client.no_tls_without_handshake(one)
        dialer.require_possible(one, options.tls_transport)
        from nbdattach.connection import tls

        tls.require_usable(one)


def _attach(
    target: Target,
    device: Device | None,
    options: ConnectOptions,
    tag: str,
    backend: choice.Backend,
    reporter: Reporter,
    contested: bool,
    end: ExitStack,
) -> Attachment:
    """The caller closes `end` after we have released everything that the attachment needed."""
    trace = reporter.trace
    with (
        connected(target, options, trace, reporter.say) as (reached, connections, export, notes),
        alone_with(tag),
        ExitStack() as alone,
    ):
        there = _already_there(tag, target, device, options)  # another command may have been faster
        if there:
            return there
        shape = limits.plan(target.uri, export, options.read_only, options.block_size)
        address = address_of(connections[0].stream.sock)
        if not (shape.read_only or options.shared or options.server):
            also = [one for one in (target, *others(target, options.also)) if one != reached]
            wanted = Wanted(reached, export.name, address, also)
            alone.enter_context(alone_with_all(wanted.names, target.uri))
            wanted.refuse()
        notes += remarks.on_export(target, options, export, shape)
        sockets = [connection.stream.sock for connection in connections]
        tls, relay = connections[0].tls, connections[0].relay
        numbers = [sock.fileno() for sock in sockets]
        relay_pid = relay.pid if relay else None
        using = "" if reached == target else reached.uri
        if using:
            notes.append(f"{target.uri}: it cannot be reached; the device is attached to {using}")
        job = Job(tag, target, export, shape, numbers, options, contested, tls, relay_pid, address, using)
        with TURNS.one():
            for candidate in candidates.to_try(device, export, backend.makes_devices):
                try:
                    hold = _taken(backend, candidate, job)
                except Taken:
                    trace(f"{candidate.path}: another program took it first")
                    continue
                except Busy:
                    if device:
                        from nbdattach.operations import occupied

                        raise occupied.open_elsewhere(device) from None
                    continue
                with hold.node:
                    trace(f"{candidate.path}: served by {backend.name}, {len(job.sockets)} connection(s)")
                    watched = backend.name == "netlink" and options.reconnect and not options.root
                    have_watched = partial(_have_watched, candidate, sockets, relay) if watched else list[str]
                    notes += _complete(hold, backend, job, Deadline(options.connect_timeout), have_watched, end)
                    return Attachment(candidate.path, Kernel(candidate).pid, notes)
    raise candidates.none_free(device, backend.makes_devices)


def _have_watched(device: Device, sockets: Sequence[socket] = (), relay: Relay | None = None) -> list[str]:
    """Has the monitor watch the device. If no monitor can, the device stays attached; returns a note for the user.

    Without `sockets` the monitor finds the device by itself, when it starts or at its next round.
    """
    try:
        launch.ensure_monitor()
        if sockets:
            control.watch(device, sockets, relay)
    except NbdattachError as error:
        return [f"{device.path}: attached, but no monitor will reconnect it: {error}"]
    return []


def _taken(backend: choice.Backend, device: Device, job: Job) -> Hold:
    """The device, served and claimed."""
    with _kernel_errors(device, job):
        return backend.attach(device, job)


@contextmanager
def _kernel_errors(device: Device, job: Job) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise ConnectionLost(job.target.uri, "right after the handshake") from None
    except Unanswered:
        doing = "the kernel reads the partition table"
        raise DeadlinePassed(job.target.uri, job.options.connect_timeout, doing) from None
    except OSError as error:
        raise KernelRefused.at(device.path, error.filename or "attach", error.errno or 0) from error


def _complete(
    hold: Hold,
    backend: choice.Backend,
    job: Job,
    deadline: Deadline,
    have_watched: Callable[[], list[str]],
    end: ExitStack,
) -> list[str]:
    """Takes the device from "served" to "ready and ours"; returns notes for the user. Undoes everything on failure."""
    device = hold.node.device
    try:
        with _kernel_errors(device, job):
            notes = _steps_to_ready(hold, backend, job, deadline)
            notes += have_watched()
            end.enter_context(interrupts.delayed(device))
            hold.commit()
            return notes
    except BaseException:
        ended = None
        with suppress(OSError):  # if we have no descriptor left, it must be undone all the same
            ended = state.identity_of(device)
        hold.abandon()
        hold.node.clear(Deadline(_CLEAR_SECONDS))
        queue_choice.take_back(hold.node)
        state.forget(device)
        if Kernel(device).size or Kernel(device).partitions:  # another program has it open
            if ended:
                state.note_end(device, ended)
            tidy_up_later(device, ended and ended[0])
        if job.options.server:
            from nbdattach.own_server import kept

            kept.take_back(job.options.server)
        raise
    finally:
        hold.close()


def _steps_to_ready(hold: Hold, backend: choice.Backend, job: Job, deadline: Deadline) -> list[str]:
    node, notes = hold.node, []
    if not job.shape.read_only:
        node.allow_writes()
    settings.correct(node.device, job.shape.flags)
    queue_choice.set_read_ahead(node, job.options.read_ahead)  # last: a change of another limit may raise it
    notes += settings.differences(node.device, job.shape.flags, job.shape.max_sectors_kb, job.shape.block_size)
    notes += remarks.on_room(node.device, backend, job)
    node.scan_partitions(deadline)
    page = node.first_page(deadline)
    # A failed read may mean a bad sector at the server, or that the server hung up: then the attachment ends soon.
    hold.raise_if_ended(_LAST_GASP if page is None else 0)
    if page is None:
        notes.append(f"{job.target.uri}: attached, but the server cannot read the first block of the export")
    else:
        notes += remarks.on_block_size(node, job, page, deadline)
    node.is_of_another_disk_now()
    node.let_udev_in()
    if not udev.settle(Kernel(node.device).paths, SETTLE_SECONDS):
        notes.append(f"{node.device.path}: udev has not settled; links in /dev/disk may come later")
    notes += remarks.on_nodes(node.device)
    notes += remarks.on_backend(node.device, backend, job.options)
    state.forget(node.device)  # the state of an attachment before this one
    state.save(node.device, _record(hold, backend, job))
    if job.options.server:
        from nbdattach.own_server import kept

        kept.leave_to(job.options.server, node.device.name)
    return notes


def _record(hold: Hold, backend: choice.Backend, job: Job) -> state.Record:
    options = job.options
    on_loss = DEFAULT_ON_LOSS if options.on_loss is None else options.on_loss
    return state.Record(
        tag=job.tag,
        target=job.target.uri,
        export=job.export.name,
        backend=backend.name,
        connections=len(job.sockets),
        since=now(),
        kernel_pid=Kernel(hold.node.device).pid,
        pid=hold.pid,
        started=hold.pid and started(hold.pid),
        size=job.export.size,
        flags=job.shape.flags,
        block_size=job.shape.block_size,
        max_sectors_kb=job.shape.max_sectors_kb,
        raw=options.raw_size is not None,
        id=os.urandom(8).hex(),
        tls=job.tls,
        relay=job.relay,
        relay_started=job.relay and started(job.relay),
        trust=job.target.trust,
        address=job.address,
        using=job.using,
        **{**options.lasting(), "on_loss": None if on_loss == FOREVER else on_loss},
    )


def _already_there(tag: str, target: Target, device: Device | None, options: ConnectOptions) -> Attachment | None:
    """The requested attachment, if it exists already. Raises `DeviceInUse` if `device` holds another one."""
    for candidate in [device] if device else sysfs.devices():
        record = state.load(candidate)
        if record and record.tag == tag and (record.pid is None or alive(record.pid)):
            found = Attachment(candidate.path, Kernel(candidate).pid, fresh=False)  # now: another one may come later
            from nbdattach.operations import occupied

            occupied.require_same(candidate, target, options)
            notes = [f"{candidate.path}: already attached to {target.uri}"]
            if record.backend == "netlink" and record.reconnect and not options.root:
                notes += _have_watched(candidate)  # the command that attached it may have been killed before it did so
            found.notes = tuple(notes)
            return found
    if device and Kernel(device).attached:
        from nbdattach.operations import occupied

        raise occupied.holds_other(device)
    return None
