# SPDX-License-Identifier: GPL-2.0-or-later
"""Block devices by their paths, without a wait for a dead disk.

A path that is not in /dev, such as that of a loop device's file, may lead to one: another disk may be mounted over it,
or it is a path of another mount namespace. The lookup then reads the folders of that disk. So a copy of this process
looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from nbdattach.host import procfs

_DEV = "/dev/"
# Seconds; the kernel mostly answers at once.
_A_MOMENT = 1.0
_NONE = "-"


def numbers_of(paths: Sequence[str]) -> list[str | None]:
    """As `procfs.block_number`, for each; None for all that are not in /dev if the kernel does not answer in time."""
    found = {path: procfs.block_number(path) for path in paths if path.startswith(_DEV)}
    if others := [path for path in paths if path not in found]:
        from nbdattach.host import copies  # few hosts have such a path

        answer = copies.answer_about(tuple(others), _A_MOMENT, partial(_lines, others))
        lines = answer.split("\n") if answer else [_NONE] * len(others)
        found.update((path, None if line == _NONE else line) for path, line in zip(others, lines, strict=True))
    return [found[path] for path in paths]


def _lines(paths: Sequence[str]) -> str:
    return "\n".join(procfs.block_number(path) or _NONE for path in paths)
