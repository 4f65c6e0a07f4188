# SPDX-License-Identifier: GPL-2.0-or-later
"""Loop devices, swap and disk images on files of a mounted file system, which cannot be unmounted before they go.

The kernel shows the path of such a file, as our mount namespace has it or as another one has it. So the number of its
file system decides about a loop device. No file is looked at, because its disk may be dead, but those of btrfs: they
have the numbers of its subvolumes, and a mount has another one.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from nbdattach.host import copies, procfs
from nbdattach.host.bare_files import identity
from nbdattach.immutable import immutable
from nbdattach.kernel import loop

if TYPE_CHECKING:
    from nbdattach.attached.mounts import Mount

# For one question about a loop device.
_SECONDS = 2.0


@immutable
class OnFiles:
    """Of one mount."""

    loops: list[str]  # names in /sys
    swaps: list[str]  # paths


def on_files_of(mount: Mount, mounts: Sequence[Mount], loops: Mapping[str, str], swaps: Sequence[str]) -> OnFiles:
    """Those of a mount. `mounts`: all of our namespace; `loops` with the paths of their files, `swaps`: paths of files.

    A host may have dozens of loop devices, as snapd makes them, so only those with a path that leads to it are asked.
    """
    return OnFiles(
        [
            name
            for name, path in loops.items()
            if _mount_of(path, mounts) == mount and _is_on(name, path, mount, mounts)
        ],
        [path for path in swaps if _mount_of(path, mounts) == mount],
    )


def _mount_of(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """The one that shows that path: the longest, and of several at one place the last."""
    above = [one for one in mounts if path.startswith(one.path.rstrip("/") + "/")]
    return max(reversed(above), key=lambda one: len(one.path), default=None)


def _is_on(name: str, path: str, mount: Mount, mounts: Sequence[Mount]) -> bool:
    identities = [copies.answer_about(name, _SECONDS, partial(loop.file_of, name)) or ""]
    return _has_one(mount, mounts, identities, [path])


def has_one(mount: Mount, mounts: Sequence[Mount], identities: Collection[str], paths: Sequence[str]) -> bool:
    """Whether a file with one of these identities (`bare_files.identity`) is on that mount; `paths` are their names."""
    return _has_one(mount, mounts, identities, [path for path in paths if _mount_of(path, mounts) == mount])


def _has_one(mount: Mount, mounts: Sequence[Mount], identities: Collection[str], here: Sequence[str]) -> bool:
    """`here`: those of its names that lead to that mount."""
    if mount.kind != "btrfs":
        numbers = [one.partition(":")[0] for one in identities]
        return any(number.isdigit() and procfs.major_minor(int(number)) == mount.number for number in numbers)
    found = [copies.answer_about(path, _SECONDS, partial(_identity, path, mount, mounts)) for path in here]
    return any(one in identities for one in found if one)


def _identity(path: str, mount: Mount, mounts: Sequence[Mount]) -> str:
    """Empty if a symbolic link leads to another mount, as to the backing file of an image."""
    place = os.path.realpath(path)
    return identity(os.stat(place)) if _mount_of(place, mounts) == mount else ""
