# SPDX-License-Identifier: GPL-2.0-or-later
"""How to serve a disk image: looks at the image, and chooses the server and its options (`commands`).

Decisions that matter:
* The format is the one that name and header agree on (`content.image_format`). QEMU is told it, and never guesses.
* What an image cannot do is found out before a server is started: a server that is started read-only says so here.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace

from nbdattach.connect_options import ImageOptions
from nbdattach.content import image_format
from nbdattach.errors import DeviceInUse, KernelRefused, Malformed, Refused
from nbdattach.host.bare_files import identity
from nbdattach.kernel.loop import loop_with
from nbdattach.own_server import below, commands, installed, truncation
from nbdattach.own_server.commands import Serving
from nbdattach.own_server.plan import Plan
from nbdattach.server_of_ours import Image
from nbdattach.text import plain, typed

# For the writes of --snapshot, which may be many; the folder's name has random parts.
_OVERLAYS = "/var/tmp"  # noqa: S108


def plan(
    path: str,
    options: ImageOptions,
    read_only: bool,
    size: int | None,
    goes_on: bool = True,
    look: bool = False,
) -> Plan:
    """How to serve the image at `path`, or the part of it that begins at an offset and has that size, both in bytes.

    Raises `NbdattachError`.

    `goes_on`: a device goes on after its server was killed. `look`: only to read it, and beside other programs.
    """
    head, tail = _ends(path)
    found = _format_of(path, options, head, tail)
    notes = []
    is_only_read = look or read_only or options.snapshot
    why = image_format.never_writable(head, found) or _why_not_writable(path, is_only_read)
    unwritable = "" if is_only_read else why
    if unwritable:
        notes.append(f"{plain(path)}: attached read-only: {why}")
    read_only = read_only or bool(why and not options.snapshot)
    serving = Serving(path, found, options, read_only, size, goes_on=goes_on, look=look)
    serving.require_possible()
    chain = below.chain(path, found) if commands.has_further_files(head, found) else []
    if found == "qcow2":
        notes += _truncated(path, read_only)
    own = identity(os.stat(path))
    files = [(file, its) for one in chain for file, its in one.files if its != own]
    image = Image(
        path,
        found,
        own,
        tuple(one.path for one in chain[1:]),
        options.snapshot,
        not why,
        options.offset,
        size,
        tuple(its for its in (*(its for _, its in files), below.of_loop(path)) if its),
    )
    if not is_only_read:
        _require_no_loop(path, image)
    how = "hold" if options.snapshot else "read" if read_only else "write"
    # QEMU locks further parts of the image itself, as it wants to write them.
    locks = [(path, how), *((file, "read") for one in chain[1:] for file, _ in one.files)]
    planned = Plan(
        (),
        read_only,
        image,
        tuple(notes),
        ((path, own), *files),
        locks=() if look else tuple(locks),
        unwritable=unwritable,
    )
    return _with_command(planned, serving, image)


def _with_command(planned: Plan, serving: Serving, image: Image) -> Plan:
    """The plan with the server's program, and with what has to be done for it. Raises `KernelRefused`."""
    path = image.path
    qemu_img = installed.required("qemu-img", path) if image.snapshot or serving.needs_repair else ""
    if image.snapshot:
        overlay = f"{_OVERLAYS}/nbdattach-{os.urandom(8).hex()}/overlay.qcow2"
        return replace(
            planned,
            command=serving.above(overlay).by_qemu_nbd(installed.required("qemu-nbd", path)),
            prepare=serving.new_overlay(qemu_img, overlay),
            delete=(overlay,),
        )
    nbdkit = installed.found("nbdkit") if serving.suits_nbdkit else None
    return replace(
        planned,
        command=serving.by_nbdkit(nbdkit) if nbdkit else serving.by_qemu_nbd(installed.required("qemu-nbd", path)),
        repair=serving.repair(qemu_img) if qemu_img else (),
    )


def _ends(path: str) -> tuple[bytes, bytes]:
    """Its beginning and its end. Raises `KernelRefused`."""
    try:
        with open(path, "rb") as file:
            head = file.read(image_format.HEAD)
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - image_format.TAIL))
            return head, file.read(image_format.TAIL)
    except OSError as error:
        hint = "run it as a user who may read it" if error.errno in (errno.EACCES, errno.EPERM) else "see dmesg"
        raise KernelRefused(plain(path), f"cannot be read: {error.strerror}", hint) from None


def _format_of(path: str, options: ImageOptions, head: bytes, tail: bytes) -> str:
    """Raises `Malformed` if name, header and --format disagree. Any content may be raw, if the user says so."""
    wanted = options.format
    if wanted is None:
        return image_format.format_of(path, head, tail)
    found = image_format.format_by_magic(head, tail)
    if wanted not in ("raw", found):
        has = "no such header" if found == "raw" else f"the header of {found}"
        raise Malformed(plain(path), f"--format {wanted}, but it has {has}", f"--format {found} if that is right")
    return wanted


def _why_not_writable(path: str, is_only_read: bool) -> str:
    """Why the image can only be read; empty if it can be written.

    One that is only read is not opened for writing: on overlayfs, as in a container, that copies all of it.
    """
    if is_only_read and os.path.isfile(path) and os.access(path, os.W_OK):
        return ""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return error.strerror or str(error)
    return ""


def _truncated(path: str, read_only: bool) -> list[str]:
    """A note for the user if the image has lost its end. Raises `Refused` if it would be written."""
    if not (truncation.seems_cut_off(path) and truncation.has_errors(path, installed.required("qemu-img", path))):
        return []
    cause = "the image has errors: data that is in use lies behind its end"
    if not read_only:
        hint = f"qemu-img check {typed(path)} shows more; --read-only attaches it as it is"
        raise Refused(plain(path), cause, hint)
    return [f"{plain(path)}: {cause}, and reads as zeroes"]


def _require_no_loop(path: str, image: Image) -> None:
    """Raises `DeviceInUse` if a loop device has the file, or a partition: both would write it."""
    loop = loop_with({image.identity, *below.partitions_of(path)})
    if loop:
        raise DeviceInUse(plain(path), f"/dev/{loop} has it already", f"losetup -d /dev/{loop}")
