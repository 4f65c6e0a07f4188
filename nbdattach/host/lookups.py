# SPDX-License-Identifier: GPL-2.0-or-later
"""Block devices by their paths, without a wait for a dead disk.

A path that is not in /dev, such as that of a loop device's file, may lead to one: another disk may be mounted over it,
or it is a path of another mount namespace. The lookup then reads the folders of that disk. So a copy of this process
looks.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbdattach.host import procfs

_DEV = "/dev/"
# Seconds; the kernel mostly answers at once.
_A_MOMENT = 1.0
_NONE = "-"


def numbers_of(paths: Sequence[str]) -> list[str | None]:
    """As `procfs.block_number`, for each; None for all if the kernel does not answer in time."""
    if all(path.startswith(_DEV) for path in paths):
        return [procfs.block_number(path) for path in paths]
    from nbdattach.host import copies  # few hosts have such a path

    answer = copies.answer_within(_A_MOMENT, lambda: "\n".join(procfs.block_number(path) or _NONE for path in paths))
    lines = answer.split("\n") if answer else [_NONE] * len(paths)
    return [None if line == _NONE else line for line in lines]
