# SPDX-License-Identifier: GPL-2.0-or-later
"""A device in /sys, for worker, guard and flush, which run in a bare interpreter: `sysfs` imports too much for them."""

from __future__ import annotations

import os


def attribute(name: str, what: str) -> str:
    """An attribute of the device in /sys; empty if there is none."""
    try:
        with open(f"/sys/block/{name}/{what}", errors="surrogateescape") as file:
            return file.read().strip()
    except OSError:
        return ""


def is_free(path: str) -> bool:
    """Whether the kernel has reset the size: it keeps the size while another process has the device open."""
    return attribute(os.path.basename(path), "size") in ("", "0")


def partitions(path: str) -> list[str]:
    """Nodes of the partitions that the kernel knows of now."""
    name = os.path.basename(path)
    try:
        return [f"/dev/{one}" for one in os.listdir(f"/sys/block/{name}") if one.startswith(f"{name}p")]
    except OSError:
        return []


def loop_on(path: str) -> bool:
    """Whether a loop device uses the device or a partition: loop devices do not claim the device below them."""
    places = [path, *partitions(path)]
    loops = (name for name in os.listdir("/sys/block") if name.startswith("loop"))
    return any(attribute(name, "loop/backing_file") in places for name in loops)
