#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Root file systems of Debian releases, with that release's own Python, libraries and servers. Made as root, once.

roots.py [RELEASE...]    makes those that are missing, and prints their folders
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import cache
from job import HERE, LabError

ROOTS = ("bookworm", "trixie", "sid")

# The packages of the tests: interpreter and libraries, servers, clients to compare with, and programs for devices.
_PACKAGES = [
    *("python3", "python3-click", "python3-pyroute2"),
    *("nbdkit", "nbdkit-plugin-python", "qemu-utils", "nbd-server", "nbd-client", "libnbd-bin"),
    *("fio", "udev", "dmsetup", "lvm2", "mdadm", "cryptsetup-bin", "e2fsprogs", "fdisk", "kmod"),
    *("iproute2", "procps", "systemd-sysv"),
    *("dbus", "openssl", "gnutls-bin", "bash-completion", "zsh", "fish", "perl", "man-db", "mandoc"),
    *("git", "make", "ca-certificates", "busybox-static"),
]
_OF_RELEASE = {
    "bookworm": [],
    "trixie": ["python3-pytest", "python3-pytest-timeout", "python3-hypothesis"],
    # Python 3.15 imports the pure Python packages of 3.14. There, pivot_root(8) is in a separate package.
    "sid": ["python3-pytest", "python3-pytest-timeout", "python3-hypothesis", "python3.15", "util-linux-extra"],
}
# Its pytest is too old for the tests' settings, so newer ones are put here.
_BESIDE = {"bookworm": ["pytest>=8", "pytest-timeout", "hypothesis"]}
SITE = "/opt/pytest"


def root_folder(release: str) -> Path:
    """The folder of that release's root file system."""
    packages = [*_PACKAGES, *_OF_RELEASE[release]]
    version = hashlib.sha256(" ".join([*packages, *_BESIDE.get(release, [])]).encode()).hexdigest()[:8]
    folder = cache.made_once(f"root-{release}-{version}", lambda place: _make(release, packages, place))
    hosts = folder / "etc/hosts"
    if not hosts.exists():  # Debian 12's minimal system has none, and nothing else that knows localhost
        hosts.write_text("127.0.0.1 localhost\n::1 localhost\n")
    return folder


def _make(release: str, packages: list[str], place: Path) -> None:
    if os.geteuid() != 0:
        raise LabError(f"the root of {release} is made by root: sudo tests/lab/roots.py {release}")
    print(f"lab: making the root of {release}, a minute or two", file=sys.stderr)
    bootstrap(release, packages, place)
    if beside := _BESIDE.get(release):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # By the root's own version of Python, not this one's.
        version = ["--python-version", "3.11", "--only-binary=:all:"]
        subprocess.run([*pip, *version, "--target", f"{place}{SITE}", *beside], check=True)


def bootstrap(release: str, packages: list[str], place: Path) -> None:
    """A minimal system of that release with these packages, each NAME or NAME=VERSION."""
    source = subprocess.run([HERE / "archive", "source", release], check=True, capture_output=True, text=True).stdout
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(packages)}"]
    command += ['--aptopt=Acquire::Languages "none"', '--aptopt=Acquire::Check-Valid-Until "false"']
    command += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*"]
    subprocess.run([*command, release, place, source.strip()], check=True, env={**os.environ, "INITRD": "No"})


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ROOTS:
        print(root_folder(wanted))
