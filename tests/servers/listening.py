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

_TCP_ESTABLISHED, _TCP_LISTEN = "01", "0A"
_SS_CONNECTED = 3
_ACCEPTS = 1 << 16  # __SO_ACCEPTCON


def listens(pid: int, place: Place) -> bool:
    """Whether a socket of that process listens there. One of another process with the same port does not count."""
    ours = set(_sockets(pid))  # first, as the table of all connections may be long
    tables = ("unix",) if isinstance(place, str) else ("tcp", "tcp6")
    return bool(ours) and any(inode in ours for table in tables for inode in _listening(pid, table, place))


def clients(place: Place) -> int:
    """How many connections there are to that place, of this network. `ss` says the same, as a program of its own."""
    if isinstance(place, str):
        sockets = [_of_unix(line) for line in _lines("self", "unix")]
        return sum(path == place and not flags and state == _SS_CONNECTED for flags, state, _, path in sockets)
    rows = [line.split() for table in ("tcp", "tcp6") for line in _lines("self", table)]
    return sum(state == _TCP_ESTABLISHED and _port(remote) == place[1] for _, _, remote, state, *_ in rows)


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
    for line in _lines(pid, table):
        if isinstance(place, str):
            flags, _, inode, path = _of_unix(line)
            there = flags & _ACCEPTS and path == place
        else:
            _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
            there = state == _TCP_LISTEN and _port(local) == place[1]
        if there:
            yield inode


def _lines(pid: int | str, table: str) -> list[str]:
    """Of a table of its network, without the heading (proc(5))."""
    try:
        return Path(f"/proc/{pid}/net/{table}").read_text(errors="replace").splitlines()[1:]
    except OSError:  # the process has ended, or this kernel has no IPv6
        return []


def _of_unix(line: str) -> tuple[int, int, str, str]:
    """Flags, state, inode, path."""
    _, _, _, flags, _, state, inode, path = [*line.split(maxsplit=7), ""][:8]
    return int(flags, 16), int(state, 16), inode, path


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)
