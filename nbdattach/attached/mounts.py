# SPDX-License-Identifier: GPL-2.0-or-later
"""Mounts: a line of mountinfo each (proc_pid_mountinfo(5)), and the disks that they name."""

from __future__ import annotations

from nbdattach.host import procfs
from nbdattach.host.procfs import Opener
from nbdattach.immutable import immutable
from nbdattach.kernel import sysfs


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
        return name_of(self.source)


def mounts_here() -> list[Mount]:
    """Of our own mount namespace, the one on top last. No file of a disk is looked at."""
    return [parsed(line, None) for line in procfs.mount_table()]


def name_of(path: str) -> str:
    """The name in /sys of a block device, by any of its names in /dev, such as /dev/mapper/NAME."""
    number = procfs.block_number(path) if path.startswith("/dev/") else None
    return (number and sysfs.block_name(number)) or path.removeprefix("/dev/")


def parsed(line: str, owner: Opener | None) -> Mount:
    """One line of mountinfo, of the mount namespace of `owner`; None if it is ours."""
    before, _, after = line.partition(" - ")
    fields, kind, source, *options = before.split(" "), *after.split(" ")[:3]
    path, source = procfs.unescaped(fields[4]), procfs.unescaped(source)
    return Mount(path, fields[2], source, kind, owner, "".join(options), fields[0], fields[1])
