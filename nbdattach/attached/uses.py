# SPDX-License-Identifier: GPL-2.0-or-later
"""Users of a device: each in words for people and as facts for programs, with the command that releases it.

A mount that cannot be reached by its path has no command, because umount would take the one that is there instead.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence

from nbdattach.attached.mounts import Mount
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse
from nbdattach.host import open_files, procfs
from nbdattach.host.procfs import Opener
from nbdattach.host.targets import Target
from nbdattach.immutable import immutable
from nbdattach.kernel.sysfs import Block
from nbdattach.server_of_ours import Image
from nbdattach.text import plain, typed

# Users named in the one line of an error; the list below it has all.
_MAX_SAID = 3
# Kinds of device mapper mappings: how the uuid begins, the kind's name, and the command that removes it by its name.
_MAPPINGS = (
    ("LVM-", "LVM volume", ("lvchange", "-an")),
    ("CRYPT-", "dm-crypt mapping", ("cryptsetup", "close")),
    ("mpath-", "multipath device", ("multipath", "-f")),
    ("", "device mapper device", ("dmsetup", "remove")),
)
# LVM's uuid of a mapping: that of the volume group and that of the volume, 32 characters each. Internal devices of a
# volume have more behind these, or are themselves volumes that no user sees.
_LVM_UUID = r"(?a)LVM-\w{32}(\w{6})(\w{4})(\w{4})(\w{4})(\w{4})(\w{4})(\w{6})"


@immutable
class Use:
    """One user of a device, and how to release it."""

    kind: str  # "mount" | "swap" | "holder" | "process" | "target"
    where: str  # a path, or the process id
    says: str  # for people
    release: tuple[str, ...]  # the words of a command; none if no command is known
    instead: str = ""  # what to do if no command is known

    @property
    def line(self) -> str:
        """For people, with the command."""
        return f"{self.says}: {self.command or self.instead}"

    @property
    def command(self) -> str:
        """Safe to show, and to type."""
        return " ".join(map(typed, self.release))

    @property
    def facts(self) -> dict[str, object]:
        """For programs. `instead` is null if there is a command."""
        instead = None if self.release else self.instead
        return {"kind": self.kind, "where": self.where, "release": [*self.release], "instead": instead}


@immutable
class User:
    """One user. `name` is a path for mounts, else a name that `status` lists: dm-0, md0, loop0, swap, a process id."""

    name: str
    use: Use
    direct: bool = True  # of the device or a partition of it, not of something on top
    elsewhere: bool = False  # a mount of another mount namespace alone


@immutable
class Users:
    """In the order in which they have to be released."""

    all: list[User]

    @property
    def mounts(self) -> list[str]:
        """Paths in our mount namespace; paths in others only if it is not mounted in ours.

        Each service with a private /tmp has mounts of its own of the disk that /tmp is on.
        """
        found = [one for one in self.all if one.use.kind == "mount" and one.direct]
        here = [one for one in found if not one.elsewhere]
        outer_first = sorted(here or found, key=lambda one: one.name.rstrip("/").count("/"))
        return list(dict.fromkeys(one.name for one in outer_first))

    @property
    def holders(self) -> list[str]:
        names = [one.name for one in self.all if one.use.kind == "holder" and one.direct]
        swap = ["swap"] if any(one.use.kind == "swap" and one.direct for one in self.all) else []
        return sorted(set(names)) + swap

    def __bool__(self) -> bool:
        return bool(self.all)

    def __str__(self) -> str:
        said = [one.use.says for one in self.all[:_MAX_SAID]]
        return ", ".join(said) + (f" and {len(self.all) - _MAX_SAID} more" if len(self.all) > _MAX_SAID else "")

    @property
    def uses(self) -> list[Use]:
        return [one.use for one in self.all]


def refusal(device: Device, cause: str, hint: str, uses: Sequence[Use]) -> DeviceInUse:
    """The error for these users."""
    return DeviceInUse(device.path, cause, hint, [one.line for one in uses], [one.facts for one in uses])


def opened(openers: Collection[Opener]) -> Users:
    """Processes as users, each one once, however many descriptors of the device it has."""
    each = {one.pid: one for one in openers}.values()
    how = {open_files.MAPPED: "mapped"}
    return Users([process(one, f"{how.get(one.fd, 'open')} in process {one}") for one in each])


def process(one: Opener, says: str) -> User:
    return User(str(one.pid), Use("process", str(one.pid), says, ("kill", str(one.pid))))


def mounted(mount: Mount, direct: bool, hidden_by: str = "") -> User:
    """`hidden_by`: the path of a mount of another device that umount would reach in its place; empty for none."""
    where, instead = f"mounted at {plain(mount.path)}", ""
    command: tuple[str, ...] = ("umount", mount.path)
    if mount.owner:
        where += f" in the mount namespace of process {mount.owner}"
        command = _elsewhere(mount.owner.pid, command)
    if hidden_by and "umount" in command:
        command, instead = (), f"what is mounted on top of it, at {plain(hidden_by)}, has to go first"
    elif mount.path == "/" and "umount" in command:  # would make it read-only, no more (do_umount in fs/namespace.c)
        command, instead = (), "a root file system cannot be unmounted"
    use = Use("mount", mount.path, where, command, instead)
    return User(mount.path, use, direct, elsewhere=mount.owner is not None)


def _elsewhere(pid: int, command: tuple[str, ...]) -> tuple[str, ...]:
    """How root unmounts it in another mount namespace without running another user's program there."""
    if procfs.runs_our_programs(pid):
        return ("nsenter", "-m", "-t", str(pid), *command)
    service = procfs.service_of(pid)
    return ("systemctl", "restart", service) if service else ("kill", str(pid))


def swapped_on(what: str, path: str, direct: bool) -> User:
    return User("swap", Use("swap", path, what, ("swapoff", path)), direct)


def holder(block: Block, direct: bool) -> User:
    path, what, instead = f"/dev/{block.name}", "", ""
    command: tuple[str, ...] = ()
    if block.name.startswith("loop"):
        what, command = "a loop device", ("losetup", "-d", path)
    elif block.name.startswith("md"):
        what, command = "an md array", ("mdadm", "--stop", path)
    elif block.mapping is not None:
        what, command = _mapping(*block.mapping)
    else:
        instead = f"see /sys/block/{block.name}"
    says = f"held by {block.name}" + (f" ({what})" if what else "")
    return User(block.name, Use("holder", path, says, command, instead), direct)


def attached_from(block: Block, image: Image) -> User:
    """A device of ours that is not on the other one itself, but has its image there."""
    path = f"/dev/{block.name}"
    says = f"held by {block.name}, with the image {plain(image.path)}"
    return User(block.name, Use("holder", path, says, ("nbdattach", "disconnect", path)), direct=False)


def passed_on(target: Target, block: Block, direct: bool) -> User:
    what = "" if direct else f"{block.name} "
    says = f"{what}passed on by {target.by} as {plain(os.path.basename(target.place))}"
    return User(target.place, Use("target", target.place, says, (), f"see {plain(target.place)}"), direct)


def _mapping(name: str, uuid: str) -> tuple[str, tuple[str, ...]]:
    """What it is, and the command that removes it; of a volume by uuid, as an image may have a group of any name."""
    _, kind, tool = next(one for one in _MAPPINGS if uuid.startswith(one[0]))
    volume = re.match(_LVM_UUID, uuid)
    if volume:
        return f"{kind} {plain(name)}", (*tool, "--select", f"lv_uuid={'-'.join(volume.groups())}")
    return f"{kind} {plain(name)}", (*tool, f"/dev/mapper/{name}" if tool[0] == "lvchange" else name)
