# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts the monitor where none runs: through systemd where that is in charge, else by itself."""

from __future__ import annotations

import os
import subprocess

from nbdattach.attached import state
from nbdattach.deadline import Deadline
from nbdattach.errors import NbdattachError
from nbdattach.host import spawn, systemd
from nbdattach.host.spawn import python
from nbdattach.monitor import control
from nbdattach.monitor.control import NoMonitor
from nbdattach.text import plain

UNIT = "nbdattach-monitor.service"
# Of the monitor of a checkout, or another installation, beside one that has UNIT.
UNIT_BESIDE = "nbdattach-monitor-beside.service"
START_SECONDS = 30
_POLL = 0.05
# All that a monitor gets of our environment, because it is for all devices and outlives us. It must not get what a
# service manager tells the process that it started, such as NOTIFY_SOCKET and LISTEN_FDS.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")


def ensure_monitor() -> None:
    """Returns when a monitor answers. Raises `NoMonitor`."""
    if control.answers():
        return
    with state.start_lock():
        if not control.answers():
            _start()


def _start() -> None:
    failures = []
    for command in _ways():
        failure = _failure_of(command)
        if failure is None or control.answers() or state.monitor_lives():  # another command may have been faster
            deadline = Deadline(START_SECONDS)
            while not control.answers():
                if not deadline.sleep(_POLL):
                    raise NoMonitor(f"does not answer after {START_SECONDS} s")
            return
        failures.append(failure)
    raise NoMonitor(f"cannot be started: {failures[-1]}")


def in_background() -> None:
    """Starts one as a daemon, whatever init there is. Raises `NbdattachError` where it does not come up."""
    failure = _failure_of(python("monitor.service", "main_in_background"))
    if failure:
        raise NbdattachError("monitor", failure.removeprefix("monitor: "), "see dmesg for its log")


def _ways() -> list[list[str]]:
    """To be tried in this order: each starts a monitor of the same code as this command."""
    daemon = python("monitor.service", "main_in_background")
    if not systemd.in_charge():
        return [daemon]
    if _is_of_other_code(UNIT):
        return [_transient(UNIT_BESIDE), daemon]
    return [["systemctl", "start", UNIT], _transient(UNIT), daemon]


def _is_of_other_code(unit: str) -> bool:
    """Whether the unit is installed and runs another nbdattach. If that cannot be told, its admin knows better."""
    program = systemd.program(unit)
    package = spawn.package_of(program) if program else None
    return package is not None and package != os.path.realpath(spawn.PACKAGE)


def _transient(unit: str) -> list[str]:
    """Where no unit is installed; so the monitor outlives the end of the unit that connect runs in."""
    command = ["systemd-run", "--quiet", "--collect", f"--unit={unit}", "--property=Type=notify"]
    command += ["--property=Restart=on-failure", "--property=OOMScoreAdjust=-1000", "--property=KillMode=process"]
    command += ["--property=DefaultDependencies=no", "--property=IgnoreOnIsolate=yes"]  # to the end of a shutdown
    return [*command, *python("monitor.service", "main")]


def _failure_of(command: list[str]) -> str | None:
    """Why it could not be started, None where it was."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/",
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            timeout=START_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else plain(done.stderr.strip()) or f"{command[0]} ended with {done.returncode}"
