# SPDX-License-Identifier: GPL-2.0-or-later
"""How to serve a disk image: looks at the image, and chooses the server and its options (`commands`).

Decisions that matter:
* The format is the one that name and header agree on (`content.image_format`). QEMU is told it, and never guesses.
* What an image cannot do is found out before a server is started: a server that is started read-only says so here.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import stat
import subprocess
from dataclasses import dataclass

from nbdattach.connect_options import ImageOptions
from nbdattach.content import image_format
from nbdattach.errors import DeviceInUse, KernelRefused, Malformed, Refused
from nbdattach.kernel.bare_sysfs import loop_of
from nbdattach.own_server import commands, programs, truncation
from nbdattach.own_server.commands import Serving
from nbdattach.own_server.image_lock import identity
from nbdattach.own_server.plan import Plan
from nbdattach.server_of_ours import Image
from nbdattach.text import plain, quoted

_INFO_SECONDS = 10
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
    why = image_format.never_writable(head, found) or _why_not_writable(path)
    if why and not (look or read_only or options.snapshot):
        notes.append(f"{plain(path)}: attached read-only: {why}")
    read_only = read_only or bool(why and not options.snapshot)
    serving = Serving(path, found, options, read_only, size, goes_on=goes_on, look=look)
    serving.require_possible()
    backing = _backing(path, found) if commands.may_have_backing(head, found) else []
    if found == "qcow2":
        notes += _truncated(path, read_only)
    if not (look or read_only or options.snapshot):
        _require_no_loop(path)
    image = Image(
        path,
        found,
        identity(os.stat(path)),
        tuple(one.path for one in backing),
        options.snapshot,
        not why,
        options.offset,
        size,
        tuple(one.identity for one in backing),
    )
    qemu_img = programs.required("qemu-img", path) if options.snapshot or serving.needs_repair else ""
    locks = [] if look else [(one.path, "read") for one in backing if one.format == "raw"]
    if options.snapshot:
        overlay = f"{_OVERLAYS}/nbdattach-{os.urandom(8).hex()}/overlay.qcow2"
        command = serving.above(overlay).by_qemu_nbd(programs.required("qemu-nbd", path))
        locks += [(path, "read")] * (found == "raw")
        prepare = serving.new_overlay(qemu_img, overlay)
        return Plan(command, read_only, image, tuple(notes), prepare=prepare, delete=(overlay,), locks=tuple(locks))
    nbdkit = programs.found("nbdkit") if serving.suits_nbdkit else None
    if nbdkit:
        locks += [] if look else [(path, "read" if read_only else "write")]
        return Plan(serving.by_nbdkit(nbdkit), read_only, image, tuple(notes), locks=tuple(locks))
    if not (look or read_only) and stat.S_ISBLK(os.stat(path).st_mode):
        locks.append((path, "claim"))
    command = serving.by_qemu_nbd(programs.required("qemu-nbd", path))
    repair = serving.repair(qemu_img) if qemu_img else ()
    return Plan(command, read_only, image, tuple(notes), repair=repair, locks=tuple(locks))


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


def _why_not_writable(path: str) -> str:
    """Why the image can only be read; empty if it can be written."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return error.strerror or str(error)
    return ""


def _truncated(path: str, read_only: bool) -> list[str]:
    """A note for the user if the image has lost its end. Raises `Refused` if it would be written."""
    if not (truncation.seems_cut_off(path) and truncation.has_errors(path, programs.required("qemu-img", path))):
        return []
    cause = "the image has errors: data that is in use lies behind its end"
    if not read_only:
        hint = f"qemu-img check {shlex.quote(plain(path))} shows more; --read-only attaches it as it is"
        raise Refused(plain(path), cause, hint)
    return [f"{plain(path)}: {cause}, and reads as zeroes"]


@dataclass(frozen=True, slots=True)
class _Below:
    """An image below another one."""

    path: str
    format: str
    identity: str


def _backing(path: str, found: str) -> list[_Below]:
    """The images below it, the nearest first. Raises `Refused` if one of them, or the image, cannot be opened."""
    command = [programs.required("qemu-img", path), "info", "--force-share", "--backing-chain", "--output=json"]
    try:
        done = subprocess.run(
            [*command, "-f", found, path], stdin=subprocess.DEVNULL, capture_output=True, timeout=_INFO_SECONDS
        )
        if done.returncode == 0:
            return [_below(one["filename"], one.get("format", "")) for one in json.loads(done.stdout)[1:]]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError):
        return []
    words = done.stderr.decode(errors="replace").strip().rpartition("\n")[2].removeprefix("qemu-img: ")
    hint = "qemu-img check shows more"
    if "backing file" in words:
        hint = "qemu-img rebase -u corrects the name of a backing file"
    raise Refused(plain(path), f"QEMU cannot open it: {quoted(words)}", hint)


def _below(name: str, found: str) -> _Below:
    """It may be no file, but a URL or QEMU's JSON."""
    try:
        return _Below(name, found, identity(os.stat(name)))
    except OSError:
        return _Below(name, "", "")


def _require_no_loop(path: str) -> None:
    """Raises `DeviceInUse` if a loop device has the file: both would write it."""
    loop = loop_of([path])
    if loop:
        raise DeviceInUse(plain(path), f"/dev/{loop} has it already", f"losetup -d /dev/{loop}")
