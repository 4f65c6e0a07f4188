# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads the kernel's nbd driver if it is missing, and reports the reason if it cannot be loaded."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from nbdattach.errors import KernelRefused
from nbdattach.host import procfs, programs
from nbdattach.host.procfs import is_root
from nbdattach.host.spawn import SYSTEM_PATH
from nbdattach.kernel import sysfs

if TYPE_CHECKING:
    import subprocess

_CONTAINER_MARKS = ("/run/systemd/container", "/.dockerenv", "/run/.containerenv")
MODPROBE_SECONDS = 60
DRIVER = "nbd driver"


def refuse_other_systems() -> None:
    """Raises `KernelRefused` unless this is Linux with /sys and /proc: only Linux has the nbd driver (row 14)."""
    if not sys.platform.startswith("linux"):
        raise KernelRefused(
            f"this system ({sys.platform})",
            "not Linux, and only Linux has the nbd driver",
            "only list, info and check work here",
        )
    if not sysfs.is_there():
        raise sysfs.not_mounted()
    if not procfs.is_there():
        cause = "not mounted, so the users of devices cannot be seen"
        raise KernelRefused(procfs.PROC, cause, "mount -t proc proc /proc")


def ensure_loaded() -> None:
    """Loads the driver if it is not loaded yet. Raises `KernelRefused` with the reason and the remedy."""
    refuse_other_systems()
    if sysfs.driver_loaded():
        return
    if not is_root():
        raise KernelRefused(DRIVER, "not loaded, and only root may load it", "as root: modprobe nbd")
    done = modprobe("nbd")
    if not sysfs.driver_loaded():
        raise why_not(done.stderr)


def modprobe(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs modprobe; returns its result, with any exit code. Raises `KernelRefused` if it cannot be run."""
    try:
        environment = {"PATH": SYSTEM_PATH, "LC_ALL": "C"}
        return programs.run("modprobe", *arguments, seconds=MODPROBE_SECONDS, env=environment)
    except TimeoutError:
        raise KernelRefused(DRIVER, f"modprobe nbd took more than {MODPROBE_SECONDS} s", "see dmesg") from None
    except OSError as error:
        raise _without_modprobe(error) from None


def _without_modprobe(error: OSError) -> KernelRefused:
    """modprobe could not even be started."""
    if _in_container():
        return why_not("")
    if isinstance(error, FileNotFoundError):
        return KernelRefused(DRIVER, "not loaded, and there is no modprobe", "install the package kmod")
    return KernelRefused.at(DRIVER, "not loaded, and modprobe cannot be run", error.errno or 0)


def load_tls() -> None:
    """Tries to load the kernel's module tls. A failure raises nothing here; the use of TLS on a socket fails then."""
    if not sysfs.tls_loaded():
        with contextlib.suppress(KernelRefused):
            modprobe("tls")


def why_not(words: str) -> KernelRefused:
    """Why the driver cannot be loaded, judged by the machine's state; if that shows no reason, modprobe's `words`."""
    said = " ".join(words.split())[:200] or "modprobe nbd gave no reason"
    release = os.uname().release
    if _in_container():
        return KernelRefused(
            DRIVER, "not loaded, and this is a container", "load it on the host: modprobe nbd; pass /dev/nbd* in"
        )
    if not os.path.isdir(f"/lib/modules/{release}"):
        others = _installed_kernels()
        if others:
            return KernelRefused(
                DRIVER,
                f"not loaded: the modules of the running kernel {release} are gone, only those of {others} exist",
                "the kernel was upgraded: reboot",
            )
        return KernelRefused(
            DRIVER, f"not loaded: no modules for kernel {release} in /lib/modules", "install the kernel's modules"
        )
    if not _has_module(release):
        return KernelRefused(
            DRIVER,
            f"kernel {release} has no nbd module",
            "some distributions have it in a separate package, such as linux-modules-extra or kernel-modules-extra",
        )
    return KernelRefused(DRIVER, f"cannot be loaded: {said}", "see dmesg; is module loading locked down?")


def _in_container() -> bool:
    return any(os.path.exists(mark) for mark in _CONTAINER_MARKS)


def _installed_kernels() -> str:
    try:
        return ", ".join(sorted(os.listdir("/lib/modules")))
    except OSError:
        return ""


def _has_module(release: str) -> bool:
    for listing in ("modules.dep", "modules.builtin"):
        try:
            with open(f"/lib/modules/{release}/{listing}") as file:
                if any("/nbd.ko" in line for line in file):
                    return True
        except OSError:
            continue
    return False
