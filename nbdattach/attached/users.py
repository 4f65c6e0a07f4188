# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the users of a block device: file systems, swap, devices built on it, and processes that have it open.

The list gives the order of release: mounts, the inner ones first; then devices, each after those that are built on it.
A mount that cannot be reached by its path has no command, because umount would take the one that is there instead.
Nothing here opens a device, because opening a dead one would hang.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from nbdattach.attached import state
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse
from nbdattach.host import open_files, procfs, targets
from nbdattach.host.procfs import Opener
from nbdattach.host.targets import Target
from nbdattach.immutable import immutable
from nbdattach.kernel import sysfs
from nbdattach.kernel.sysfs import Block, Kernel
from nbdattach.text import plain, typed

if TYPE_CHECKING:
    from nbdattach.attached.on_files import OnFiles
    from nbdattach.attached.spread import Spread

# Seconds: a process counts as a user once it has kept the device open this long; probes (udev, blkid) end before.
A_LOOK = 2.0
# Seconds between looks. Random, so as not to run in lockstep with a program that opens and closes it in a loop.
_LOOKS = (0.001, 0.02)
# Seconds for the look at all open files of this host.
_HIDDEN_SECONDS = 5.0
# Users named in the one line of an error; the list below it has all.
_MAX_SAID = 3
_DEV = "/dev/"
_DELETED = " (deleted)"
# File systems that may have more disks than their mounts name.
_SPREAD = ("btrfs", "xfs", "ext3", "ext4", "f2fs")
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
        """For programs."""
        return {"kind": self.kind, "where": self.where, "release": [*self.release]}


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


@immutable
class Mount:
    """A mount point of one mount namespace. `owner` is a process in it, None for the namespace that we are in."""

    path: str
    number: str  # major:minor; btrfs has one that belongs to no device
    source: str
    kind: str  # of the file system
    owner: Opener | None
    options: str = ""  # of the file system, as the kernel has them
    id: str = ""  # of the mount, in all namespaces
    parent: str = ""  # the id of the mount that it is mounted on

    @property
    def place(self) -> tuple[str, str]:
        return self.number, self.path

    @property
    def disk(self) -> str:
        """The name in /sys of the disk that it names."""
        return _name_of(self.source)


class Census:
    """All mounts and swap devices of this host; read when first asked for, and only once."""

    @cached_property
    def _tables(self) -> list[Mount]:
        """Of all mount namespaces that we can see."""
        return [_mount(line, owner) for owner, lines in procfs.mount_tables() for line in lines]

    @cached_property
    def mounts(self) -> list[Mount]:
        """A mount at the same place in our mount namespace and in another counts once."""
        ours = {one.place for one in self._tables if one.owner is None}
        return [one for one in self._tables if one.owner is None or one.place not in ours]

    @cached_property
    def _by_id(self) -> dict[str, Mount]:
        return {one.id: one for one in self._tables}

    @cached_property
    def _by_parent(self) -> dict[str, list[Mount]]:
        found: dict[str, list[Mount]] = {}
        for one in self._tables:
            found.setdefault(one.parent, []).append(one)
        return found

    @cached_property
    def _swaps(self) -> list[str]:
        """Paths of devices and files."""
        return [procfs.unescaped(line.split()[0]) for line in procfs.lines("swaps")[1:]]

    @cached_property
    def swaps(self) -> set[str]:
        """Names of devices in /sys."""
        return {_name_of(path) for path in self._swaps}

    @cached_property
    def _loops(self) -> dict[str, str]:
        return sysfs.loops()

    @cached_property
    def loops(self) -> dict[str, list[str]]:
        """Loop devices by the number of the block device that backs them, under any of its names."""
        return _loops_by_number(self._loops)

    @cached_property
    def on_files(self) -> dict[str, OnFiles]:
        """Loop devices and swap on files, by the id of the mount. The module is loaded if this host has any."""
        loops = {name: path for name, path in self._loops.items() if not path.startswith(_DEV)}
        swaps = [path for path in self._swaps if not path.startswith(_DEV)]
        if not (loops or swaps):
            return {}
        from nbdattach.attached.on_files import by_mount

        return by_mount([one for one in self._tables if one.owner is None], loops, swaps)

    @cached_property
    def spread(self) -> Spread:
        """Disks that mounts do not name; few hosts have any, and each command would load it."""
        from nbdattach.attached.spread import Spread

        return Spread()

    @cached_property
    def targets(self) -> dict[str, list[Target]]:
        """Disks that the kernel passes on, by their numbers."""
        return targets.by_number()

    def users_of(self, device: Device) -> Users:
        """All users of the device that can be seen from here; root sees more."""
        layers: list[list[User]] = []  # each has what is on files of the one before
        blocks, seen, holders = [Block(device.name)], set[str](), list[User]()
        while blocks or holders:
            mounts: list[tuple[Mount, bool]] = []
            built: dict[Use, User] = {}  # one that is built on two partitions counts once
            for one in (user for block in blocks for user in self._built(block, seen, mounts)):
                if one.use not in built or one.direct:
                    built[one.use] = one
            layers.append([*self._mounted(mounts), *built.values(), *holders])
            files = [self.on_files[one.id] for one, _ in mounts if one.id in self.on_files]
            blocks = [Block(name) for one in files for name in one.loops if name not in seen]
            holders = [_holder(block, False) for block in blocks]
            holders += [_swapped_on(f"swapped on {plain(path)}", path, False) for one in files for path in one.swaps]
        return Users([one for layer in reversed(layers) for one in layer])

    def _mounted(self, mounts: list[tuple[Mount, bool]]) -> Iterator[User]:
        """Those mounted on others of them, or on top of them, come first."""
        places = {mount.place for mount, _ in mounts}
        for mount, direct in sorted(mounts, key=lambda one: -len(self._way_to(one[0]))):
            on_top = [one for one in self._hiding(mount) if not (one.path == mount.path and one.place in places)]
            yield _mounted(mount, direct, on_top[0].path if on_top else "")

    def _way_to(self, mount: Mount) -> list[Mount]:
        """The mount, and those below it down to the root, as far as they can be seen."""
        way = [mount]
        while (below := self._by_id.get(way[-1].parent)) and below not in way:
            way.append(below)
        return way

    def _hiding(self, mount: Mount) -> list[Mount]:
        """Mounts that lie on it, or on a part of the way to it: its path leads there."""
        found = [one for one in self._by_parent.get(mount.id, ()) if one.path == mount.path]
        way = self._way_to(mount)
        for above, below in pairwise(way):
            for one in self._by_parent.get(below.id, ()):
                if one != above and above.path.startswith(one.path.rstrip("/") + "/"):
                    found.append(one)
        return found

    def _built(self, block: Block, seen: set[str], mounts: list[tuple[Mount, bool]]) -> Iterator[User]:
        """Swap and devices on the device and its partitions, those on top first. Adds the mounts to the list."""
        direct = not seen
        for part in [*map(Block, block.partitions), block]:
            if part.name in seen:
                continue
            seen.add(part.name)
            number = part.number or part.name
            for name in [*part.holders, *self.loops.get(number, [])]:
                yield from self._built(Block(name), seen, mounts)
                yield _holder(Block(name), direct)
            mounts += [(one, direct) for one in self.mounts if one.number == number or self._is_on(one, part)]
            if part.name in self.swaps:
                what = "swapped on" if direct else f"{part.name} swapped on"
                yield _swapped_on(what, f"/dev/{part.name}", direct)
            for target in self.targets.get(number, []):
                yield _passed_on(target, part, direct)

    def _is_on(self, mount: Mount, block: Block) -> bool:
        return mount.kind in _SPREAD and self.spread.is_on(mount, block)


def users_of(device: Device) -> Users:
    """As `Census.users_of`, for one device."""
    return Census().users_of(device)


def mounts_here() -> list[Mount]:
    """Of our own mount namespace, the one on top last. No file of a disk is looked at."""
    return [_mount(line, None) for line in procfs.mount_table()]


def _name_of(path: str) -> str:
    """The name in /sys of a block device, by any of its names in /dev, such as /dev/mapper/NAME."""
    number = procfs.block_number(path) if path.startswith("/dev/") else None
    return (number and sysfs.block_name(number)) or path.removeprefix("/dev/")


def _loops_by_number(backing: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for loop, path in backing.items():
        # To look for a name that is gone reads its folder, whose disk may be dead.
        number = None if path.endswith(_DELETED) else procfs.block_number(path)
        if number:
            found.setdefault(number, []).append(loop)
    return found


class _NearCensus(Census):
    """What we see without a look at any file of a disk, which may be away; it costs little."""

    @cached_property
    def _tables(self) -> list[Mount]:
        return mounts_here()

    @cached_property
    def loops(self) -> dict[str, list[str]]:
        return _loops_by_number({loop: path for loop, path in self._loops.items() if path.startswith(_DEV)})

    @cached_property
    def on_files(self) -> dict[str, OnFiles]:
        return {}

    @cached_property
    def targets(self) -> dict[str, list[Target]]:
        return targets.by_number(_DEV)


def is_used(device: Device) -> bool:
    """Whether it is mounted in our mount namespace, swapped on, or another device is built on it.

    Never waits for a server.
    """
    return bool(_NearCensus().users_of(device))


def open_by(device: Device, *own_fds: int, helpers: Collection[int] = ()) -> list[Opener]:
    """Processes that have the device or a partition open now, except `own_fds` of ours and the process that serves it.

    Nor `helpers` of ours, nor a process of the monitor that reads the device for a moment. "Serves": our worker, or the
    process of another tool that blocks in NBD_DO_IT. With netlink no process serves: the kernel shows the pid of the
    process that attached the device, which may have it open as any other process.
    """
    serving = serving_pid(device)
    others = {procfs.group_of(serving), *helpers} if serving else helpers
    found = open_files.openers(numbers_of(device), others, own_fds)
    return [one for one in found if not procfs.is_ours(one.pid, procfs.LOOK)]


def kept_open_by(device: Device, *own_fds: int, helpers: Collection[int] = ()) -> list[Opener]:
    """As `open_by`, but only processes that keep it open for longer than a probe (`A_LOOK`)."""
    numbers = numbers_of(device)
    there, patience = open_by(device, *own_fds, helpers=helpers), Deadline(A_LOOK)
    while there and patience.nap(*_LOOKS):
        there = [one for one in there if open_files.still_open(one.pid, one.fd, numbers)]
    return there


def serving_pid(device: Device) -> int | None:
    """The process in NBD_DO_IT, if its pid means the same process here."""
    if Kernel(device).by_netlink:
        return None
    record = state.load(device)
    if record and record.pid:
        return record.pid
    return Kernel(device).pid if procfs.sees_all() else None


def numbers_of(device: Device) -> set[str]:
    """major:minor of the device and of its partitions."""
    numbers = (Block(name).number for name in [device.name, *Block(device.name).partitions])
    return {number for number in numbers if number}


def opened(openers: Collection[Opener]) -> Users:
    """Processes as users, each one once, however many descriptors of the device it has."""
    each = {one.pid: one for one in openers}.values()
    how = {open_files.MAPPED: "mapped"}
    return Users([_process(one, f"{how.get(one.fd, 'open')} in process {one}") for one in each])


def _process(one: Opener, says: str) -> User:
    return User(str(one.pid), Use("process", str(one.pid), says, ("kill", str(one.pid))))


def in_use(device: Device, users: Users) -> DeviceInUse:
    """The error that names the users: these, else the processes that have it open, as far as we can see them."""
    users = users or opened(open_by(device)) or _hidden(device)
    if users:
        hint = "release it first, from the top" if len(users.all) > 1 else "release it first"
        return refusal(device, str(users), hint, users.uses)
    cause = "held exclusively by a user that cannot be seen from here"
    hint = "is it zfs, a container, or an overlay? fuser -v, zpool status and lsblk may show it"
    return DeviceInUse(device.path, cause, hint)


def _hidden(device: Device) -> Users:
    """Processes on a file system that no mount shows. They are asked last: this looks at each open file of the host."""
    says = "its file system, unmounted with umount -l, is in use by process"
    found = open_files.inside(numbers_of(device), _HIDDEN_SECONDS)
    return Users([_process(one, f"{says} {one}") for one in found])


def refusal(device: Device, cause: str, hint: str, uses: Sequence[Use]) -> DeviceInUse:
    """The error for these users."""
    return DeviceInUse(device.path, cause, hint, [one.line for one in uses], [one.facts for one in uses])


def _mounted(mount: Mount, direct: bool, hidden_by: str = "") -> User:
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


def _swapped_on(what: str, path: str, direct: bool) -> User:
    return User("swap", Use("swap", path, what, ("swapoff", path)), direct)


def _holder(block: Block, direct: bool) -> User:
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


def _passed_on(target: Target, block: Block, direct: bool) -> User:
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


def _mount(line: str, owner: Opener | None) -> Mount:
    """One line of mountinfo (proc_pid_mountinfo(5))."""
    before, _, after = line.partition(" - ")
    fields, kind, source, *options = before.split(" "), *after.split(" ")[:3]
    path, source = procfs.unescaped(fields[4]), procfs.unescaped(source)
    return Mount(path, fields[2], source, kind, owner, "".join(options), fields[0], fields[1])
