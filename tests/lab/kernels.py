#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernels of the lab, from Debian's packages: fetched, unpacked and kept, the same on each host.

For user-mode Linux: a newer linux.uml wants a newer C library than an older host has. Running it through ld.so does not
do: UML takes the end of its brk for the end of its memory, and 7.2 executes /proc/self/exe anew. So the interpreter's
path in the program is replaced by a relative one, and the program is started in its own folder, with its own C library.

    kernels.py [KERNEL...]    fetches those that are missing (without KERNEL: user-mode Linux), prints their folders
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cache
from job import HERE, UML, LabError

SUITES = {
    "6.1": "bookworm",
    "6.12": "trixie",
    "7.2": "sid",
    "6.1-qemu": "bookworm",
    "6.12-qemu": "trixie",
    "7.3-qemu": "trixie-backports",
}
_INTERPRETER = b"/lib64/ld-linux-x86-64.so.2\0"
_RELATIVE = b"./ld.so"


def kernel_folder(kernel: str) -> Path:
    """The folder with linux.uml, its ld.so and libc.so.6, or with vmlinuz; and with lib/modules/VERSION."""
    return cache.made_once(f"kernel-{kernel}", lambda place: _make(kernel, place))


def kernel_version(folder: Path) -> str:
    """As uname -r has it."""
    return next((folder / "lib/modules").iterdir()).name


def _make(kernel: str, place: Path) -> None:
    print(f"lab: fetching kernel {kernel} of {SUITES[kernel]}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="lab-") as scratch:
        (_make_uml if kernel in UML else _make_stock)(SUITES[kernel], Path(scratch), place)
    version = kernel_version(place)
    if not version.startswith(f"{kernel.removesuffix('-qemu')}."):
        print(f"lab: kernel {kernel} is {version}: {SUITES[kernel]} has moved on", file=sys.stderr)


def _make_uml(suite: str, scratch: Path, place: Path) -> None:
    _fetch(suite, scratch, "user-mode-linux", "libc6")
    _write_program(scratch / "usr/bin/linux.uml", place / "linux.uml")
    shutil.copy(_one(scratch, "libc.so.6"), place / "libc.so.6")
    shutil.copy(_one(scratch, "ld-linux-x86-64.so.2"), place / "ld.so")
    shutil.copytree(scratch / "usr/lib/uml/modules", place / "lib/modules", symlinks=True)


def _make_stock(suite: str, scratch: Path, place: Path) -> None:
    _fetch(suite, scratch, "linux-image-amd64")
    modules = next(path for path in (scratch / "usr/lib/modules", scratch / "lib/modules") if path.is_dir())
    shutil.copytree(modules, place / "lib/modules", symlinks=True)
    for name in ("vmlinuz", "config"):
        # In /boot, or from 7.3 on with the modules.
        found = [*(scratch / "boot").glob(f"{name}-*"), *modules.glob(f"*/{name}")]
        shutil.copy(found[0], place / name)
    subprocess.run(["/sbin/depmod", "--basedir", place, kernel_version(place)], check=True)


def _fetch(suite: str, scratch: Path, *packages: str) -> None:
    done = subprocess.run([HERE / "fetch", suite, scratch, *packages], capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or "it says nothing").splitlines()[-1]
        raise LabError(f"cannot fetch {' and '.join(packages)} of {suite}: {last}")


def _write_program(original: Path, program: Path) -> None:
    text = original.read_bytes()
    assert text.count(_INTERPRETER) == 1
    program.write_bytes(text.replace(_INTERPRETER, _RELATIVE.ljust(len(_INTERPRETER), b"\0")))
    program.chmod(0o755)


def _one(scratch: Path, name: str) -> Path:
    """Below /lib in older packages, below /usr/lib in newer ones."""
    return next(path for path in scratch.rglob(name) if path.is_file() and not path.is_symlink())


if __name__ == "__main__":
    for wanted in sys.argv[1:] or UML:
        print(kernel_folder(wanted))
