# SPDX-License-Identifier: GPL-2.0-or-later
"""Waits until udev has handled a device, if udev runs at all."""

from __future__ import annotations

import os
from collections.abc import Sequence

from nbdattach.host import programs

CONTROL = "/run/udev/control"
RULES = "60-nbdattach.rules"
RULE_FOLDERS = ("/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d")


def running() -> bool:
    return os.path.exists(CONTROL)


def has_our_rules() -> bool:
    return any(os.path.exists(f"{folder}/{RULES}") for folder in RULE_FOLDERS)


def settle(paths: Sequence[str], seconds: float) -> bool:
    """True when udev has seen these devices as they are now (symlinks, permissions), or does not run.

    udev is asked to look once more, at these only, and we wait for that. Its whole queue may never be empty, because
    other programs can cause events as fast as udev handles them.
    """
    if not running():
        return True
    # Before systemd 238, and in eudev, there is no --settle here.
    once_more = ["udevadm", "trigger", "--action=change", "--settle", *paths]
    return _done(once_more, seconds) or _done(["udevadm", "settle", f"--timeout={max(1, int(seconds))}"], seconds + 10)


def _done(command: list[str], seconds: float) -> bool:
    try:
        return programs.run(*command, seconds=seconds).returncode == 0
    except OSError:
        return False
