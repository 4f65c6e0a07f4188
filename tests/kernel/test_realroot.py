# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor of an initramfs finds the real root, whichever way the root is changed. No device is needed for that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# The first process of a namespace has one of an initramfs as its child, and then changes its own root.
_PROGRAM = """
import ctypes, os, subprocess, sys
from nbdattach.monitor import real_root
from nbdattach.kernel import sysfs

MS_BIND, MS_MOVE, MNT_DETACH = 0x1000, 0x2000, 2
libc = ctypes.CDLL(None, use_errno=True)

def see(result):
    assert result == 0, os.strerror(ctypes.get_errno())

def mount(source, place, kind="none", flags=0):
    see(libc.mount(source.encode(), place.encode(), kind.encode(), flags, None))

def make(place, folder):
    mount("root", place, "tmpfs")
    for name in ("run", "sys", "proc", folder):
        os.mkdir(f"{place}/{name}")

def stand_in():
    os.chroot(old)
    os.chdir("/")
    root = real_root.RealRoot()
    for _ in range(3):
        print("ready", flush=True)
        sys.stdin.readline()
        root.follow()
        print("real" if os.path.exists("/real") else "first", sysfs.is_there(), flush=True)

def turn():
    assert child.stdout.readline() == "ready\\n"
    child.stdin.write("\\n")
    child.stdin.flush()
    print(child.stdout.readline(), end="", flush=True)

old, how, *words = sys.argv[1:]
if words:
    stand_in()
    sys.exit()
make(old, "new")
for kind, name in (("tmpfs", "run"), ("sysfs", "sys"), ("proc", "proc")):
    mount(kind, f"{old}/{name}", kind)
pipe = subprocess.PIPE
child = subprocess.Popen([sys.executable, *sys.orig_argv[1:], "stands in"], stdin=pipe, stdout=pipe, text=True)
os.chroot(old)
turn()
make("/new", "real")
for name in ("proc", "sys", "run"):
    mount(f"/{name}", f"/new/{name}", flags=MS_MOVE if how == "moved" else MS_BIND)
    if how == "mounted once more":
        see(libc.umount2(f"/{name}".encode(), MNT_DETACH))
turn()
os.chroot("/new")
turn()
"""


@pytest.mark.essential
@pytest.mark.parametrize(("how", "half_way"), [("moved", "real True"), ("mounted once more", "first False")])
def test_it_is_found_where_run_is_moved_and_where_run_is_mounted_once_more(
    tmp_path: Path, how: str, half_way: str
) -> None:
    """By initramfs-tools and older systemd; by systemd from 254 on, where the first process has to change first."""
    namespace = ["unshare", "--mount", "--pid", "--fork", "--kill-child", sys.executable, "-c", _PROGRAM]
    done = subprocess.run([*namespace, str(tmp_path), how], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["first True", half_way, "real True"], done.stderr
