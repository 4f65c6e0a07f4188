# SPDX-License-Identifier: GPL-2.0-or-later
"""Attaching a disk image, or the server of a command in brackets: starts the server, then attaches it as any other.

Decisions that matter:
* One server an image: who attaches it again gets the device that has it. The inode says which image it is.
* The server is left to the device before the attachment is complete (`attachment`), and the keeper compares that with
  the record. So a connect that is killed at any moment leaves no server behind.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

from nbdattach.attached import state
from nbdattach.attached.state import Record
from nbdattach.backends import choice
from nbdattach.connect_options import ConnectOptions, ImageOptions
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, Malformed, NoConnection, Refused
from nbdattach.kernel import driver, sysfs
from nbdattach.kernel.sysfs import Kernel
from nbdattach.operations import attachment
from nbdattach.operations.handle import Attachment
from nbdattach.own_server import image, start
from nbdattach.own_server.image_lock import identity
from nbdattach.own_server.source import Source, may_be_image, source_at, source_of, tag_of
from nbdattach.reporter import QUIET, Reporter
from nbdattach.server_of_ours import Image
from nbdattach.text import plain

_RETRY_PAUSE = 0.5


def attach(
    source: Source,
    device: Device | None,
    options: ConnectOptions,
    image_options: ImageOptions,
    reporter: Reporter = QUIET,
) -> Attachment:
    """Attaches the source at `device`, or at a free one. Raises `NbdattachError`; then nothing is left behind."""
    if options.also:
        raise Malformed("--also", f"{plain(source.name)} has a server of its own", "leave it out")
    if options.swap:
        cause = "a server on this machine may itself be swapped out to the device"
        raise Malformed("--swap", cause, "use a swap file on a file system instead")
    # Mistakes that need no driver first.
    planned = None
    if source.path:
        planned = image.plan(source.path, image_options, options.read_only, options.raw_size, overlay="").image
    driver.ensure_loaded()
    patience = Deadline(options.retry_for)
    while True:
        try:
            with _alone_with(source, planned):
                once = replace(options, retry_for=0.0)
                return _attach(source, planned, device, once, image_options, reporter)
        except (NoConnection, Refused) as error:
            if not patience.sleep(_RETRY_PAUSE):
                raise
            reporter.trace(str(error))


@contextlib.contextmanager
def _alone_with(source: Source, planned: Image | None) -> Iterator[None]:
    """One command at a time for an image, and for those below it. No tag begins with such a character."""
    with contextlib.ExitStack() as locks:
        for name in sorted({planned.identity, *planned.below} if planned else {source.name}):
            locks.enter_context(attachment.alone_with(f"\0{name}"))
        yield


def _attach(
    source: Source,
    planned: Image | None,
    device: Device | None,
    options: ConnectOptions,
    image_options: ImageOptions,
    reporter: Reporter,
) -> Attachment:
    options = replace(options, tag=options.tag or tag_of(source))
    for found in named(source):
        record = state.load(found)
        if record:
            _require_same(found, device, planned, record, options, image_options)
            options = replace(options, raw_size=None)
            done = attachment.attach(record.current_target(), found, options, reporter)
            done.notes = tuple(note.replace(record.target, plain(source.name)) for note in done.notes)
            return done
    if planned:
        _require_no_relative(planned, options.read_only)
    goes_on = options.reconnect and choice.choose(options).name == "netlink"
    with start.served(
        source, image_options, options.read_only, options.raw_size, lasting=True, goes_on=goes_on
    ) as served:
        reporter.trace(f"{plain(source.name)}: served by {' '.join(served.server.command)}")
        options = replace(options, raw_size=None, read_only=options.read_only or served.read_only, server=served.server)
        with served.explained():
            done = attachment.attach(served.target, device, options, reporter)
        done.notes = (*served.notes, *(note.replace(served.target.uri, plain(source.name)) for note in done.notes))
        return done


def named(source: Source) -> Iterator[Device]:
    """Devices with the server of that source: of that name, or of that very file under another one."""
    try:
        wanted = identity(os.stat(source.path)) if source.path else ""
    except OSError:
        wanted = ""  # it was deleted since
    for device in sysfs.devices():
        record = state.load(device)
        server = record.server if record else None
        if server and (server.name == source.name or (server.image and server.image.identity == wanted)):
            yield device


def named_as(text: str) -> Iterator[Device]:
    """As `named`, for a text that may name no source, or an image that was deleted meanwhile."""
    if text.startswith("[ "):
        source = source_of(text)
        return named(source) if source else iter(())
    return named(source_at(text)) if may_be_image(text) else iter(())


def _require_no_relative(planned: Image, read_only: bool) -> None:
    """Raises `DeviceInUse` if an image above or below it is attached, and the lower one would be written."""
    for device in sysfs.devices():
        record = state.load(device)
        there = record.server.image if record and record.server else None
        if not there:
            continue
        hint = f"nbdattach disconnect {device.path}, or attach it read-only"
        if planned.identity in there.below and not read_only:
            cause = f"it is below {plain(there.path)}, which is attached at {device.path} and would change with it"
            raise DeviceInUse(plain(planned.path), cause, hint)
        if there.identity in planned.below and not Kernel(device).read_only:
            cause = f"it is above {plain(there.path)}, which is attached at {device.path} for writing"
            raise DeviceInUse(plain(planned.path), cause, f"nbdattach disconnect {device.path}")


def _require_same(
    found: Device,
    device: Device | None,
    planned: Image | None,
    record: Record,
    options: ConnectOptions,
    wanted: ImageOptions,
) -> None:
    """Raises `DeviceInUse` if the source is attached in another way, or elsewhere."""
    hint = f"nbdattach disconnect {found.path}"
    server = record.server
    name = plain(server.name if server else record.target)
    if device and device != found:
        raise DeviceInUse(name, f"attached at {found.path} already", hint)
    if options.tag != record.tag:
        raise DeviceInUse(name, f"attached at {found.path} already, with the tag {plain(record.tag)}", hint)
    image = server.image if server else None
    if image and planned and image.identity != planned.identity:
        raise DeviceInUse(name, f"the file that had this name before is attached at {found.path}", hint)
    if image and wanted.snapshot != image.snapshot:
        how = "with" if image.snapshot else "without"
        raise DeviceInUse(name, f"attached at {found.path} {how} --snapshot", hint)
    if image and (wanted.offset, options.raw_size) != (image.offset, image.size):
        raise DeviceInUse(name, f"another part of it is attached at {found.path}", hint)
    if image and wanted.format not in (None, image.format):
        raise DeviceInUse(name, f"attached at {found.path} as {image.format}, not as {wanted.format}", hint)
