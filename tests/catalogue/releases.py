#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Root file systems of Debian releases with pinned servers. Made as root, once.

releases.py    makes those that are missing, and prints their folders
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TREE / "tests/lab"))

import cache  # noqa: E402 # tests/lab is no package
import roots  # noqa: E402

# By release: the packages of the servers, with their versions. Debian's archive keeps one version of a suite, so a
# new one needs a new line here, and a new run.
PINNED = {
    "bookworm": {
        "nbdkit": "1.32.5-1",
        "nbdkit-plugin-python": "1.32.5-1",
        "nbdkit-plugin-perl": "1.32.5-1",
        "nbd-server": "1:3.24-1.1",
        "qemu-utils": "1:7.2+dfsg-7+deb12u18+b3",
        "qemu-system-x86": "1:7.2+dfsg-7+deb12u18+b3",
    },
    "trixie": {
        "nbdkit": "1.42.3-1",
        "nbdkit-plugin-python": "1.42.3-1",
        "nbdkit-plugin-perl": "1.42.3-1",
        "nbd-server": "1:3.26.1-6.1",
        "qemu-utils": "1:10.0.13+ds-0+deb13u1",
        "qemu-system-x86": "1:10.0.13+ds-0+deb13u1",
    },
    "sid": {
        "nbdkit": "1.48.1-1",
        "nbdkit-plugin-python": "1.48.1-1",
        "nbdkit-plugin-perl": "1.48.1-1",
        "nbd-server": "1:3.27.1-4",
        "qemu-utils": "1:11.1.3+ds-1",
        "qemu-system-x86": "1:11.1.3+ds-1",
    },
}
# What the setups need beside: images, a file system, a CD, a server of SSH. Their versions matter to no row.
_BESIDE = [
    "python3",
    "openssh-server",
    "mtools",
    "dosfstools",
    "e2fsprogs",
    "xorriso",
    "xz-utils",
    "iproute2",
    "procps",
    "fdisk",
]


def folder(release: str) -> Path:
    """The folder of that release's root file system."""
    packages = [*(f"{name}={version}" for name, version in PINNED[release].items()), *_BESIDE]
    version = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:8]
    return cache.made_once(f"servers-{release}-{version}", lambda place: _make(release, packages, place))


def _make(release: str, packages: list[str], place: Path) -> None:
    print(f"catalogue: making the root of {release}, two minutes", file=sys.stderr)
    roots.bootstrap(release, packages, place)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PINNED:
        print(folder(wanted))
