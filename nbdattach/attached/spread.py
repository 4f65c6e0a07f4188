# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a file system besides the one that its mount names: btrfs and f2fs on several, journals and logs.

The kernel claims such a disk for itself, and shows no holder of it.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

from nbdattach.host import procfs
from nbdattach.kernel import sysfs
from nbdattach.kernel.sysfs import Block

if TYPE_CHECKING:
    from nbdattach.attached.mounts import Mount

# Of xfs: the disk of its log, and that of its real-time section (xfs(5)).
_XFS_OPTIONS = ("logdev=", "rtdev=")
# The kernel cuts the name of a thread (TASK_COMM_LEN).
_COMM = 15


class Spread:
    """What /sys and /proc say of it; read when first asked for, and only once."""

    def is_on(self, mount: Mount, block: Block) -> bool:
        """Whether the mounted file system has data on that disk, which its mount does not name."""
        if mount.kind == "btrfs":
            return mount.disk == block.name or any({mount.disk, block.name} <= disks for disks in self._btrfs)
        if mount.kind == "xfs":
            paths = (one.partition("=")[2] for one in mount.options.split(",") if one.startswith(_XFS_OPTIONS))
            return block.number in map(procfs.block_number, map(procfs.unescaped, paths))
        if mount.kind in ("ext4", "ext3"):
            return mount.number in self._with_journal_on(block.name)
        return mount.kind == "f2fs" and any(
            Block(first).number == mount.number and block.name in disks for first, disks in self._f2fs.items()
        )

    @cached_property
    def _btrfs(self) -> list[set[str]]:
        return sysfs.btrfs_devices()

    @cached_property
    def _f2fs(self) -> dict[str, set[str]]:
        """Of each one, by its first disk. Older kernels do not tell."""
        names = procfs.names(f"{procfs.PROC}/fs/f2fs")
        return {
            name: set(re.findall(r"/dev/(\S+)", "\n".join(procfs.lines(f"fs/f2fs/{name}/disk_map")))) for name in names
        }

    @cached_property
    def _journals(self) -> set[str]:
        """Names of disks with a journal; that of a journal in its own file system has an inode after them: sda1-8."""
        return set(procfs.names(f"{procfs.PROC}/fs/jbd2"))

    def _with_journal_on(self, disk: str) -> set[str]:
        """Numbers of the disks of ext4 with a journal on that disk: the thread of a journal has its disk's name."""
        if disk not in self._journals:
            return set()
        thread, place = f"jbd2/{disk}"[:_COMM], f"{sysfs.SYS}/fs/ext4"
        found = [name for name in procfs.names(place) if _comm_of_journal(f"{place}/{name}") == thread]
        return {Block(name).number or "" for name in found}


def _comm_of_journal(place: str) -> str:
    try:
        with open(f"{place}/journal_task") as file:
            return procfs.name_of(int(file.read()))
    except (OSError, ValueError):
        return ""
