# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts the monitor if none runs: through systemd if systemd is in charge, otherwise as a daemon."""

from __future__ import annotations

import os

from nbdattach.attached import state
from nbdattach.deadline import Deadline
from nbdattach.errors import NbdattachError
from nbdattach.host import programs, spawn, systemd
from nbdattach.host.spawn import python
from nbdattach.monitor import control
from nbdattach.monitor.control import NoMonitor
from nbdattach.text import plain

UNIT = "nbdattach-monitor.service"
# The unit for a monitor of a checkout or of a second installation, if another installation owns UNIT.
UNIT_BESIDE = "nbdattach-monitor-beside.service"
START_SECONDS = 30
_POLL = 0.05


def ensure_monitor() -> None:
    """Returns when a monitor answers. Raises `NoMonitor`."""
    if control.answers():
        return
    with state.start_lock():
        if not control.answers():
            _start()


def _start() -> None:
    """A monitor that lives and does not answer may be about to end: then another one has to be started."""
    deadline = Deadline(START_SECONDS)
    while not control.answers():
        if not state.monitor_lives():
            _start_one()
        if not deadline.sleep(_POLL):
            raise NoMonitor(f"does not answer after {START_SECONDS} s")


def _start_one() -> None:
    failures = []
    for command in _ways():
        failure = _failure_of(command)
        if failure is None or control.answers() or state.monitor_lives():  # another command may have been faster
            return
        failures.append(failure)
    raise NoMonitor(f"cannot be started: {failures[-1]}")


def in_background() -> None:
    """Starts the monitor as a daemon, under any init system. Raises `NbdattachError` if it does not start."""
    failure = _failure_of(python("monitor.service", "main_in_background"))
    if failure:
        raise NbdattachError("monitor", failure.removeprefix("monitor: "), "see dmesg for its log")


def _ways() -> list[list[str]]:
    """Commands to try in this order: each starts a monitor that runs the same code as this command."""
    daemon = python("monitor.service", "main_in_background")
    if not systemd.in_charge():
        return [daemon]
    if _is_of_other_code(UNIT):
        return [_transient(UNIT_BESIDE), daemon]
    return [["systemctl", "start", UNIT], _transient(UNIT), daemon]


def _is_of_other_code(unit: str) -> bool:
    """Whether the unit is installed and runs another nbdattach. False if we cannot tell: we trust its admin then."""
    program = systemd.program(unit)
    package = spawn.package_of(program) if program else None
    return package is not None and package != os.path.realpath(spawn.PACKAGE)


def _transient(unit: str) -> list[str]:
    """A transient unit, if none is installed: so the monitor goes on when the unit that connect runs in ends."""
    command = ["systemd-run", "--quiet", "--collect", f"--unit={unit}", "--property=Type=notify"]
    command += ["--property=Restart=on-failure", "--property=OOMScoreAdjust=-1000", "--property=KillMode=process"]
    command += ["--property=DefaultDependencies=no", "--property=IgnoreOnIsolate=yes"]  # to the end of a shutdown
    return [*command, *python("monitor.service", "main")]


def _failure_of(command: list[str]) -> str | None:
    """Why the command failed, None if it succeeded."""
    try:
        done = programs.run(*command, seconds=START_SECONDS, env=spawn.environment(), cwd="/")
    except OSError as error:
        return str(error)
    return None if done.returncode == 0 else plain(done.stderr.strip()) or f"{command[0]} ended with {done.returncode}"
