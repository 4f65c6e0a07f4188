# SPDX-License-Identifier: GPL-2.0-or-later
"""Attaching a disk image, or the server of a command in brackets: starts the server, then attaches it as any other.

Decisions that matter:
* One server an image: who attaches it again gets the device that has it. The inode says which image it is. An image
  that is attached is not looked at again: what its server is writing may look like an error.
* The server is left to the device before the attachment is complete (`attachment`), and the keeper compares that with
  the record. So a connect that is killed at any moment leaves no server behind.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from nbdattach.attached import state
from nbdattach.attached.state import Record
from nbdattach.backends import choice
from nbdattach.connect_options import ConnectOptions, ImageOptions
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, Malformed, NoConnection, Refused
from nbdattach.host.bare_files import identity
from nbdattach.kernel import driver, sysfs
from nbdattach.operations import attachment
from nbdattach.operations.alone import alone_with_all
from nbdattach.operations.handle import Attachment
from nbdattach.operations.patience import Patience
from nbdattach.own_server import kept, start, words
from nbdattach.own_server.orphans import end_orphans
from nbdattach.own_server.plan import Plan
from nbdattach.own_server.source import Source, may_be_image, source_at, source_of, tag_of
from nbdattach.reporter import QUIET, Reporter
from nbdattach.server_of_ours import OwnServer
from nbdattach.text import plain


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
    options = replace(options, tag=options.tag or tag_of(source))
    end_orphans({server.folder for _, _, server in _served()})
    patience = Patience(options.retry_for, reporter.say)
    while True:
        try:
            with alone_with_all([_identity_of(source) or source.name], plain(source.name)):
                once = replace(options, retry_for=0.0)
                return _attached_already(source, device, once, image_options, reporter) or _attach(
                    source, device, once, image_options, reporter
                )
        except (NoConnection, Refused) as error:
            reporter.trace(str(error))
            if not patience.goes_on_after(error):
                raise


def _attached_already(
    source: Source,
    device: Device | None,
    options: ConnectOptions,
    image_options: ImageOptions,
    reporter: Reporter,
) -> Attachment | None:
    """The attachment of the source, if there is one. Raises `DeviceInUse` if it is another one than is wanted."""
    for found, record in named(source):
        _require_same(found, record, source, device, options, image_options)
        try:
            done = attachment.attach(record.current_target(), found, replace(options, raw_size=None), reporter)
        except DeviceInUse as error:
            raise words.named(error, record.target, source.name) from None
        done.notes = tuple(note.replace(record.target, plain(source.name)) for note in done.notes)
        return done
    return None


def _attach(
    source: Source,
    device: Device | None,
    options: ConnectOptions,
    image_options: ImageOptions,
    reporter: Reporter,
) -> Attachment:
    plan = partial(start.plan_of, source, image_options, options.read_only, options.raw_size)
    choice.require_possible(options)
    planned = plan(goes_on=True)
    if options.read_write and planned.unwritable:
        cause = f"it cannot be written: {planned.unwritable}"
        raise Refused(plain(source.name), cause, "leave out --read-write to attach it read-only")
    driver.ensure_loaded()
    # Not before: the kernel loads the driver when it is asked for the netlink family.
    if not (options.reconnect and choice.choose(options).name == "netlink"):
        planned = plan(goes_on=False)
    options = replace(options, raw_size=None, read_only=planned.read_only)
    # Two commands never wait for each other: each takes an image first, and then those below it from the top down.
    with alone_with_all(planned.image.below if planned.image else (), plain(source.name)):
        _require_no_relative(planned)
        with start.served(source, planned, lasting=True) as served:
            reporter.trace(f"{plain(source.name)}: served by {' '.join(served.server.command)}")
            with served.explained():
                done = attachment.attach(served.target, device, replace(options, server=served.server), reporter)
            try:
                kept.require_same_file(served.server)
            except Refused:
                done.disconnect(force=True)
                raise
    notes = (note.replace(served.target.uri, plain(source.name)) for note in done.notes)
    done.notes = (*planned.notes, *notes)
    return done


def _identity_of(source: Source) -> str:
    """Of its image; empty if it has none, or if it was deleted since."""
    try:
        return identity(os.stat(source.path)) if source.path else ""
    except OSError:
        return ""


def named(source: Source, any_export: bool = False) -> Iterator[tuple[Device, Record]]:
    """Devices with the server of that source: of that name and export, or of that very file under another name."""
    wanted = _identity_of(source)
    for device, record, server in _served():
        same_export = any_export or record.current_target().export == source.export
        if (server.name == source.name and same_export) or (server.image and server.image.identity == wanted):
            yield device, record


def _served() -> Iterator[tuple[Device, Record, OwnServer]]:
    """Devices that have a server of our own."""
    for device in sysfs.devices():
        record = state.load(device)
        if record and record.server:
            yield device, record, record.server


def named_as(text: str) -> list[Device]:
    """As `named`, for a text that may name no source, or an image that was deleted meanwhile."""
    source = source_of(text) if text.startswith("[ ") else source_at(text) if may_be_image(text) else None
    return [device for device, _ in named(source, any_export=True)] if source else []


def _require_no_relative(planned: Plan) -> None:
    """Raises `DeviceInUse` if an image above or below it is attached, and the lower one would be written."""
    image = planned.image
    if not image:
        return
    for device, record, server in _served():
        there = server.image
        if there and image.identity in there.below and not (planned.read_only or image.snapshot):
            cause = f"it is below {plain(there.path)}, which is attached at {device.path} and would change with it"
            hint = f"nbdattach disconnect {device.path}, or attach it read-only"
            raise DeviceInUse(plain(image.path), cause, hint)
        if there and there.identity in image.below and not (there.snapshot or record.read_only):
            cause = f"it is above {plain(there.path)}, which is attached at {device.path} for writing"
            raise DeviceInUse(plain(image.path), cause, f"nbdattach disconnect {device.path}")


def _require_same(
    found: Device,
    record: Record,
    source: Source,
    device: Device | None,
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
    if server and not image and server.cwd != (cwd := start.current_folder()):
        cause = f"attached at {found.path}, but its command was started in {plain(server.cwd)}, not in {plain(cwd)}"
        raise DeviceInUse(name, cause, hint)
    if not image:
        return
    if image.identity != (_identity_of(source) or image.identity):
        raise DeviceInUse(name, f"the file that had this name before is attached at {found.path}", hint)
    if wanted.snapshot != image.snapshot:
        how = "with" if image.snapshot else "without"
        raise DeviceInUse(name, f"attached at {found.path} {how} --snapshot", hint)
    if (wanted.offset, options.raw_size) != (image.offset, image.size):
        raise DeviceInUse(name, f"another part of it is attached at {found.path}", hint)
    if wanted.format not in (None, image.format):
        raise DeviceInUse(name, f"attached at {found.path} as {image.format}, not as {wanted.format}", hint)
