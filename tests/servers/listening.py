# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a process listens at a place, without a connection to it: a silent client would be in a server's log.

Standard library only, as guests without anything else use it too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

# Host and port, or the path of a Unix socket.
Place: TypeAlias = "tuple[str, int] | str"

_TCP_LISTEN = "0A"
_ACCEPTS = 1 << 16  # __SO_ACCEPTCON


def listens(pid: int, place: Place) -> bool:
    """Whether a socket of that process listens there. One of another process with the same port does not count."""
    ours = set(_sockets(pid))  # first, as the table of all connections may be long
    tables = ("unix",) if isinstance(place, str) else ("tcp", "tcp6")
    return bool(ours) and any(inode in ours for table in tables for inode in _listening(pid, table, place))


def _sockets(pid: int) -> Iterator[str]:
    """The inodes of its sockets."""
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                file = os.readlink(f"/proc/{pid}/fd/{name}")
                if file.startswith("socket:["):
                    yield file[8:-1]
    except OSError:
        return


def _listening(pid: int, table: str, place: Place) -> Iterator[str]:
    """The inodes of all sockets that listen there in the network of the process."""
    try:
        lines = Path(f"/proc/{pid}/net/{table}").read_text(errors="replace").splitlines()[1:]
    except OSError:  # it has ended, or this kernel has no IPv6
        return
    for line in lines:
        if isinstance(place, str):
            _, _, _, flags, _, _, inode, path = [*line.split(maxsplit=7), ""][:8]
            there = int(flags, 16) & _ACCEPTS and path == place
        else:
            _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
            there = state == _TCP_LISTEN and int(local.rpartition(":")[2], 16) == place[1]
        if there:
            yield inode
