# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that a keeper keeps: who lives, and whom the server is left to. The files are the keeper's (`keeper`)."""

from __future__ import annotations

import os
from dataclasses import replace

from nbdattach import untrusted_json
from nbdattach.errors import KernelRefused
from nbdattach.host import bare_files, procfs, systemd
from nbdattach.host.spawn import bare_python, start_aside
from nbdattach.immutable import immutable
from nbdattach.server_of_ours import OwnServer
from nbdattach.text import plain

# Of servers of devices.
FOLDER = "/run/nbdattach/servers"


@immutable
class State:
    """As the keeper writes it: two processes, 0 if there is none, and how often the server was started again."""

    keeper: int = 0
    keeper_started: int = 0
    pid: int = 0
    started: int = 0
    restarts: int = 0

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


def take_back(server: OwnServer) -> None:
    """The attachment has failed after `leave_to`."""
    bare_files.remove(f"{server.folder}/device")
