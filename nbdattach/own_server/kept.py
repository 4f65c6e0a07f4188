# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that a keeper keeps: who lives, and whom the server is left to. The files are the keeper's (`keeper`)."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import replace

from nbdattach import untrusted_json
from nbdattach.errors import KernelRefused, Refused
from nbdattach.host import bare_files, procfs, systemd
from nbdattach.host.spawn import bare_python, start_aside
from nbdattach.immutable import immutable
from nbdattach.own_server.child import FIRST_LOCK
from nbdattach.server_of_ours import OwnServer
from nbdattach.text import plain

# Of servers of devices.
FOLDER = "/run/nbdattach/servers"


@immutable
class State:
    """As the keeper writes it: two processes, 0 if there is none, and how often the server was started again.

    `locks`: so many descriptors of the server, from `child.FIRST_LOCK` on, only lock files.
    """

    keeper: int = 0
    keeper_started: int = 0
    pid: int = 0
    started: int = 0
    restarts: int = 0
    locks: int = 0

    @property
    def living_keeper(self) -> int | None:
        return _living(self.keeper, self.keeper_started)

    @property
    def living_server(self) -> int | None:
        return _living(self.pid, self.started)


def _living(pid: int, started: int) -> int | None:
    return pid if pid and procfs.alive(pid) and procfs.started(pid) == started else None


def state_of(server: OwnServer) -> State | None:
    """None if the keeper has not begun yet, or has ended."""
    try:
        with open(f"{server.folder}/state") as file:
            return untrusted_json.made_of(State, untrusted_json.parsed(file.read(untrusted_json.MAX_TEXT)))
    except (OSError, ValueError):
        return None


def has_ended(server: OwnServer) -> bool:
    """Whether nothing keeps it, and it does not run."""
    found = state_of(server)
    return found is None or not (found.living_keeper or found.living_server)


def start_keeper(server: OwnServer, owner: int = 0) -> OwnServer:
    """Starts a keeper for the process `owner`; or, without it, one that goes on for the device.

    Returns the server, without its unit if systemd cannot start that. Raises `KernelRefused`.
    """
    arguments = (server.folder, str(owner), str(procfs.started(owner) or 0 if owner else 0))
    service = bare_python("own_server.keeper", "main", *arguments)
    if server.unit and systemd.start_service(server.unit, f"NBD server of {plain(server.name)}", service):
        return server
    try:
        start_aside(bare_python("own_server.keeper", "main_aside", *arguments)).wait()
    except OSError as error:
        raise KernelRefused(plain(server.name), f"cannot start its server: {error.strerror}", "see dmesg") from error
    return replace(server, unit=None)


def leave_to(server: OwnServer, device: str) -> None:
    """Leaves the server to the device, for as long as the record of its attachment names the server. Raises OSError."""
    bare_files.replace(f"{server.folder}/device", device)


def is_left(server: OwnServer) -> bool:
    return os.path.exists(f"{server.folder}/device")


def require_same_file(server: OwnServer) -> None:
    """After a connection was made: its server has opened the image by its name. Raises `Refused` if that led elsewhere.

    nbdkit opens it again for each connection; then all must be the same file.
    """
    image, found = server.image, state_of(server)
    if not image or not found or not found.living_server:
        return  # the next server is started with the right file, or not at all
    opened = _files_of(found)
    others = opened - {image.identity} if os.path.basename(server.command[0]) == "nbdkit" else set()
    if image.identity not in opened or others:
        cause = "another file has its name now; the device needs the one that had it before"
        raise Refused(plain(image.path), cause, "give that one its name back; requests wait for it")


def _files_of(found: State) -> set[str]:
    """The identities of the files and block devices that the server has open."""
    folder, opened = f"/proc/{found.pid}/fd", set()
    locks = range(FIRST_LOCK, FIRST_LOCK + found.locks)
    with contextlib.suppress(OSError):
        for number in os.listdir(folder):
            with contextlib.suppress(OSError):
                status = os.stat(f"{folder}/{number}")
                if int(number) not in locks and (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
                    opened.add(bare_files.identity(status))
    return opened


def take_back(server: OwnServer) -> None:
    """The attachment has failed after `leave_to`."""
    bare_files.remove(f"{server.folder}/device")
