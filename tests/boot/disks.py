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


def ext4_with(path: Path, folder: Path) -> None:
    """A file system with the files of that folder."""
    empty(path)
    _run("mkfs.ext4", "-q", "-F", "-d", folder, path)


def qcow2(path: Path, raw: Path) -> None:
    """An image with the content of a raw one."""
    _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)


def extracted(path: Path, name: str, to: Path) -> Path:
    """A file of the file system in it."""
    _run("debugfs", "-R", f"dump {name} {to}", path)
    return to


def as_raw(path: Path, to: Path) -> Path:
    """The content of a qcow2 image that is closed and has no error."""
    _run("qemu-img", "check", "-q", "-f", "qcow2", path)
    _run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, to)
    return to


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
