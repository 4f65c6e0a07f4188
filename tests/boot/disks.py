# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that a guest gets as disks, and their contents after it is off."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

_SIZE = 64 << 20
PART2 = 16 << 20  # where the second partition begins
_SFDISK = "label: dos\nstart=2048, size=8192, type=83\nstart=32768, type=83\n"


def empty(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(_SIZE)


def ext4(path: Path) -> None:
    empty(path)
    _run("mkfs.ext4", "-q", "-F", path)


def ext4_in_part2(path: Path) -> None:
    """Two partitions, the second one with a file system."""
    empty(path)
    subprocess.run(["sfdisk", "--quiet", path], input=_SFDISK, text=True, check=True)
    _run("mkfs.ext4", "-q", "-F", "-E", f"offset={PART2}", path, f"{(_SIZE - PART2) >> 10}k")


def swap(path: Path) -> None:
    empty(path)
    _run("mkswap", "--quiet", path)


def uuid(path: Path) -> str:
    """The UUID of the file system in it."""
    return _run("blkid", "--match-tag", "UUID", "--output", "value", path).strip()


def see_clean(path: Path, offset: int = 0) -> None:
    """The file system there was unmounted: nothing to recover, nothing to repair. Fails with e2fsck's message."""
    where = _at(path, offset)
    checked = subprocess.run(["e2fsck", "-fn", where], capture_output=True, text=True)
    assert checked.returncode == 0, f"{checked.stdout}{checked.stderr}"
    features = _run("dumpe2fs", "-h", where)
    assert "needs_recovery" not in features, features
    assert re.search(r"Filesystem state: +clean\n", features), features


def content(path: Path, name: str, offset: int = 0) -> str:
    """The content of a file in the file system there."""
    return _run("debugfs", "-R", f"cat {name}", _at(path, offset))


def _at(path: Path, offset: int) -> str:
    return f"{path}?offset={offset}" if offset else str(path)


def _run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
