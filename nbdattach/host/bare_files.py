# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that others read while they are written, and which file is which.

A bare interpreter imports this, so it imports next to nothing.
"""

from __future__ import annotations

import os
import stat


def identity(status: os.stat_result) -> str:
    """Of the file, or of the block device, whatever names and nodes it has."""
    return f"block:{status.st_rdev}" if stat.S_ISBLK(status.st_mode) else f"{status.st_dev}:{status.st_ino}"


def replace(name: str, text: str) -> None:
    """Writes the file, all of it or nothing; only its owner can read it. Raises OSError."""
    new = f"{name}.new"
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text)
        os.replace(new, name)
    except BaseException:
        remove(new)
        raise


def remove(name: str) -> None:
    """If it is there, and can be removed."""
    try:
        os.unlink(name)
    except OSError:
        pass
