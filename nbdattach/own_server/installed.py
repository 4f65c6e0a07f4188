# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of this system: where they are, and which package has them."""

from __future__ import annotations

import os
import shutil

from nbdattach.errors import KernelRefused
from nbdattach.host.spawn import SYSTEM_PATH
from nbdattach.text import plain

_PACKAGES = {
    "qemu-nbd": "qemu-utils",
    "qemu-img": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "nbdkit": "nbdkit",
    "lvchange": "lvm2",
    "cryptsetup": "cryptsetup-bin",
    "mdadm": "mdadm",
    "multipath": "multipath-tools",
    "dmsetup": "dmsetup",
}


def found(name: str) -> str | None:
    """Its path."""
    folders = [*os.environ.get("PATH", "").split(":"), *SYSTEM_PATH.split(":")]
    # An empty one, or a relative one, would be the current folder, in which another user may have put a program.
    path = shutil.which(name, path=":".join(one for one in folders if one.startswith("/")))
    return path and os.path.abspath(path)


def required(name: str, thing: str) -> str:
    """Its path. Raises `KernelRefused` that names its package, and the `thing` that needs it."""
    path = found(name)
    if not path and "/" in name and os.path.exists(name):
        raise KernelRefused(plain(thing), f"{plain(name)} is no program that we may run", f"ls -ld {plain(name)}")
    if not path:
        package = _PACKAGES.get(os.path.basename(name))
        hint = f"apt install {package}" if package else "is it installed, and in PATH?"
        raise KernelRefused(plain(thing), f"it needs the program {plain(name)}, which is not installed", hint)
    return path
