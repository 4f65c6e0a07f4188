# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks systemd: whether it is there, and about its units and jobs; and sd_notify(3) without a library."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence

from nbdattach.host import programs

_UNITS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_SECONDS = 10
_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")


def in_charge() -> bool:
    """Whether it is this machine's init (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def installed(unit: str) -> bool:
    """Whether there is a file of that unit; a transient one goes when it is stopped."""
    return any(os.path.exists(f"{folder}/{unit}") for folder in _UNITS)


def program(unit: str) -> str:
    """The path of the program that the unit runs; empty if there is no such unit."""
    found = re.match(r"\{ path=(.*?) ; ", _systemctl("show", "--property=ExecStart", "--value", unit))
    return found.group(1) if found else ""


def shutting_down() -> bool:
    """Whether the machine is on its way down."""
    return _systemctl("is-system-running").strip() == "stopping"


def restarting(unit: str) -> bool:
    """Whether the unit is stopped only to be started again at once."""
    jobs = (line.split() for line in _systemctl("list-jobs", "--plain", "--no-legend", "--full").splitlines())
    return any(job[1:3] == [unit, "restart"] for job in jobs)


def give_scope(pid: int, name: str) -> None:
    """Takes the process out of the session or unit that it was started from, so that it does not end with that.

    A session would wait at shutdown for a process that lives as long as its device. If there is no bus, there is no
    session, and this does nothing.
    """
    if not in_charge():
        return
    properties = ["PIDs", "au", "1", str(pid), "DefaultDependencies", "b", "false"]
    properties += ["CollectMode", "s", "inactive-or-failed", "Description", "s", f"Keeps an NBD device ({name})"]
    call = ["call", *_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", f"{name}-{pid}.scope", "fail"]
    _run("busctl", "--system", f"--timeout={_SECONDS}", *call, "4", *properties, "0")


def _systemctl(*arguments: str) -> str:
    return _run("systemctl", *arguments)


def _run(*command: str) -> str:
    """The output of the command; empty if it cannot be run."""
    try:
        return programs.run(*command, seconds=_SECONDS).stdout
    except OSError:
        return ""


def notify(state: str) -> None:
    """Sends `state` to the service manager; does nothing if no manager has asked for it.

    It never waits: a manager that hangs, as on a disk with a server that is away, must not hang us.
    """
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), socket.MSG_DONTWAIT, "\0" + place[1:] if place.startswith("@") else place)
        except OSError:
            return


def start_service(unit: str, description: str, command: Sequence[str]) -> bool:
    """Starts a transient service that outlives its caller, and that nothing stops at shutdown; False if we cannot.

    It is started again if it is killed. Its processes stay then; the next one takes them over.
    """
    properties = (
        "DefaultDependencies=no",
        "IgnoreOnIsolate=yes",
        "Restart=on-failure",
        "RestartSec=100ms",
        "StartLimitIntervalSec=0",
        "KillMode=process",
        "RefuseManualStop=yes",  # nbdattach disconnect ends it, when its device has gone
        # It may have much to write at its end.
        "TimeoutStopSec=infinity",
        "OOMScoreAdjust=-1000",
        "OOMPolicy=continue",
        "LimitNOFILE=65536",
        "SyslogIdentifier=nbdattach-server",
    )
    arguments = ["--quiet", "--collect", "--no-ask-password", f"--unit={unit}", f"--description={description}"]
    arguments += [f"--property={one}" for one in properties]
    try:
        return programs.run("systemd-run", *arguments, "--", *command, seconds=_SECONDS).returncode == 0
    except OSError:
        return False
