# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends servers that nothing needs, and whose keeper was killed: nothing else would, and their images stay locked."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection

from nbdattach.deadline import Deadline
from nbdattach.errors import KernelRefused
from nbdattach.host import syscalls
from nbdattach.own_server import kept
from nbdattach.own_server.end import end
from nbdattach.server_of_ours import OwnServer

# A keeper locks its folder, and writes its state, right after it has made it; allow a slow machine so many seconds.
_YOUNG = 60.0
_END_SECONDS = 5.0


def end_orphans(needed: Collection[str]) -> None:
    """`needed`: the folders of servers that attached devices have. Those of living keepers are left alone, too."""
    with contextlib.suppress(OSError):
        for name in os.listdir(kept.FOLDER):
            folder = f"{kept.FOLDER}/{name}"
            if folder not in needed:
                _end_if_orphan(folder)


def _end_if_orphan(folder: str) -> None:
    try:
        lock = os.open(f"{folder}/keeper", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            if not _is_young(folder):
                os.rmdir(folder)
        return
    try:
        syscalls.flock(lock)
        if _is_young(folder) and not os.path.exists(f"{folder}/state"):
            return  # its keeper is about to lock it
        with contextlib.suppress(KernelRefused):
            end(OwnServer(folder, folder, ()), Deadline(_END_SECONDS), kill=True)
    except BlockingIOError:
        pass  # its keeper lives
    finally:
        os.close(lock)


def _is_young(folder: str) -> bool:
    try:
        return time.time() - os.stat(folder).st_mtime < _YOUNG
    except OSError:
        return False
