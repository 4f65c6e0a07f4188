# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the users of a block device: file systems, swap, devices built on it, and processes that have it open.

The list gives the order of release: mounts, the inner ones first; then devices, each after those that are built on it;
and before all of these the same for what is on their files.
Nothing here opens a device, because opening a dead one would hang (`on_files` asks another process to open a loop
device).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from nbdattach.attached import state
from nbdattach.attached.mounts import Mount, mounts_here, name_of, parsed
from nbdattach.attached.uses import (
    Use,
    User,
    Users,
    attached_from,
    holder,
    mounted,
    opened,
    passed_on,
    process,
    refusal,
    swapped_on,
)
from nbdattach.deadline import Deadline
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse
from nbdattach.host import open_files, procfs, targets
from nbdattach.host.lookups import numbers_of as numbers_of_paths
from nbdattach.host.procfs import Opener
from nbdattach.host.targets import Target
from nbdattach.kernel import sysfs
from nbdattach.kernel.sysfs import Block, Kernel
from nbdattach.reporter import silent
from nbdattach.server_of_ours import Image
from nbdattach.text import plain

if TYPE_CHECKING:
    from nbdattach.attached.on_files import OnFiles
    from nbdattach.attached.spread import Spread

# Seconds: a process counts as a user once it has kept the device open this long; probes (udev, blkid) end before.
A_LOOK = 2.0
# Seconds between looks. Random, so as not to run in lockstep with a program that opens and closes it in a loop.
_LOOKS = (0.001, 0.02)
# Seconds for the look at all open files of this host.
_HIDDEN_SECONDS = 5.0
_DEV = "/dev/"
_DELETED = " (deleted)"
# File systems that may have more disks than their mounts name.
_SPREAD = ("btrfs", "xfs", "ext3", "ext4", "f2fs")


class Census:
    """All mounts and swap devices of this host; read when first asked for, and only once."""

    @cached_property
    def _tables(self) -> list[Mount]:
        """Of all mount namespaces that we can see."""
        return [parsed(line, owner) for owner, lines in procfs.mount_tables() for line in lines]

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
        return {name_of(path) for path in self._swaps}

    @cached_property
    def _loops(self) -> dict[str, str]:
        return sysfs.loops()

    @cached_property
    def loops(self) -> dict[str, list[str]]:
        """Loop devices by the number of the block device that backs them, under any of its names."""
        return _loops_by_number(self._loops)

    @cached_property
    def _files(self) -> tuple[dict[str, str], list[str]]:
        """Loop devices with the paths of their files, and paths of swap files."""
        loops = {name: path for name, path in self._loops.items() if not path.startswith(_DEV)}
        return loops, [path for path in self._swaps if not path.startswith(_DEV)]

    @cached_property
    def _images(self) -> list[tuple[str, Image]]:
        """Attached images, each with its device."""
        records = [(one.name, state.load(one)) for one in sysfs.devices() if Kernel(one).attached]
        servers = [(name, record.server) for name, record in records if record and record.server]
        return [(name, server.image) for name, server in servers if server.image]

    def _attached_from(self, block: Block) -> Iterator[tuple[str, Image]]:
        """Those with that block device as their image or below it."""
        major, _, minor = (block.number or "").partition(":")
        if minor and not block.name.startswith("nbd"):  # a device of the driver is never an image
            identity = f"block:{os.makedev(int(major), int(minor))}"
            yield from ((name, image) for name, image in self._images if identity in image.identities)

    def _attached_from_files_of(self, mounts: list[Mount]) -> list[tuple[str, Image]]:
        """Those with a file on one of these, as their image or below it."""
        if not (mounts and self._images):
            return []
        from nbdattach.attached.on_files import has_one

        def is_there(image: Image) -> bool:
            return any(has_one(mount, self._here, image.identities, image.paths) for mount in mounts)

        return [(name, image) for name, image in self._images if is_there(image)]

    @cached_property
    def _here(self) -> list[Mount]:
        """Of our own mount namespace."""
        return [one for one in self._tables if one.owner is None]

    def _on_files_of(self, mounts: list[Mount]) -> list[OnFiles]:
        """Loop devices and swap on files of each of these. The module is loaded if there may be any."""
        if not (mounts and any(self._files)):
            return []
        from nbdattach.attached.on_files import on_files_of

        return [on_files_of(one, self._here, *self._files) for one in mounts]

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
            mounted_from = [one for one, _ in mounts]
            files = self._on_files_of(mounted_from)
            blocks = [Block(name) for one in files for name in one.loops if name not in seen]
            holders = [holder(block, False) for block in blocks]
            for name, image in self._attached_from_files_of(mounted_from):
                if name not in seen:
                    blocks.append(Block(name))
                    holders.append(attached_from(Block(name), image))
            holders += [swapped_on(f"swapped on {plain(path)}", path, False) for one in files for path in one.swaps]
        return Users([one for layer in reversed(layers) for one in layer])

    def _mounted(self, mounts: list[tuple[Mount, bool]]) -> Iterator[User]:
        """Those mounted on others of them, or on top of them, come first."""
        places = {mount.place for mount, _ in mounts}
        for mount, direct in sorted(mounts, key=lambda one: -len(self._way_to(one[0]))):
            on_top = [one for one in self._hiding(mount) if not (one.path == mount.path and one.place in places)]
            yield mounted(mount, direct, on_top[0].path if on_top else "")

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
                yield holder(Block(name), direct)
            for name, image in self._attached_from(part):
                yield from self._built(Block(name), seen, mounts)
                yield attached_from(Block(name), image)
            mounts += [(one, direct) for one in self.mounts if one.number == number or self._is_on(one, part)]
            if part.name in self.swaps:
                what = "swapped on" if direct else f"{part.name} swapped on"
                yield swapped_on(what, f"/dev/{part.name}", direct)
            for target in self.targets.get(number, []):
                yield passed_on(target, part, direct)

    def _is_on(self, mount: Mount, block: Block) -> bool:
        return mount.kind in _SPREAD and self.spread.is_on(mount, block)


def users_of(device: Device) -> Users:
    """As `Census.users_of`, for one device."""
    return Census().users_of(device)


def _loops_by_number(backing: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    # To look for a name that is gone reads its folder, whose disk may be dead.
    loops = {loop: path for loop, path in backing.items() if not path.endswith(_DELETED)}
    for loop, number in zip(loops, numbers_of_paths([*loops.values()]), strict=True):
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
    def _files(self) -> tuple[dict[str, str], list[str]]:
        return {}, []

    @cached_property
    def _images(self) -> list[tuple[str, Image]]:
        return []

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
    return [one for one in _looked_for(device, own_fds, helpers) if one.fd != open_files.HIDDEN]


def _looked_for(device: Device, own_fds: Collection[int], helpers: Collection[int]) -> list[Opener]:
    serving = serving_pid(device)
    others = {procfs.group_of(serving), *helpers} if serving else helpers
    found = open_files.openers(numbers_of(device), others, own_fds)
    return [one for one in found if not procfs.is_ours(one.pid, procfs.LOOK)]


def kept_open_by(
    device: Device, *own_fds: int, helpers: Collection[int] = (), say: Callable[[str], None] = silent
) -> list[Opener]:
    """As `open_by`, but only processes that keep it open for longer than a probe (`A_LOOK`).

    `say` gets a message if there are processes of which this cannot be seen.
    """
    numbers, found = numbers_of(device), _looked_for(device, own_fds, helpers)
    patience = Deadline(A_LOOK)  # from now on: the look itself may have taken longer
    there = [one for one in found if one.fd != open_files.HIDDEN]
    if hidden := Users([process(one, f"process {one}") for one in found if one.fd == open_files.HIDDEN]):
        say(f"{device.path}: the memory of {hidden} is locked, as while a disk is away: a mapping there cannot be seen")
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


def in_use(device: Device, users: Users) -> DeviceInUse:
    """The error that names the users: these, else the processes that have it open, as far as we can see them."""
    users = users or opened(open_by(device)) or _hidden(device)
    if users:
        hint = "release it first, from the top" if len(users.all) > 1 else "release it first"
        return refusal(device, str(users), hint, users.uses)
    cause = "held exclusively by a user that cannot be seen from here"
    hint = "is it zfs, a container, or an overlay? fuser -v, zpool status and lsblk may show it; or is it a file "
    hint += "system that was frozen when it was unmounted? mount it again, then fsfreeze -u"
    return DeviceInUse(device.path, cause, hint)


def _hidden(device: Device) -> Users:
    """Processes on a file system that no mount shows. They are asked last: this looks at each open file of the host."""
    says = "its file system, unmounted with umount -l, is in use by process"
    found = open_files.inside(numbers_of(device), _HIDDEN_SECONDS)
    return Users([process(one, f"{says} {one}") for one in found])
