"""Starts the monitor where none runs: through systemd where that is in charge, else by itself."""

from __future__ import annotations

import subprocess

from nbdattach import control, state
from nbdattach.control import NoMonitor
from nbdattach.deadline import Deadline
from nbdattach.errors import NbdattachError
from nbdattach.interpreter import python
from nbdattach.systemd import in_charge
from nbdattach.wiretext import plain

UNIT = "nbdattach-monitor.service"
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
    failure = _failure_of(python("monitor", "main_in_background"))
    if failure:
        raise NbdattachError("monitor", failure.removeprefix("monitor: "), "see dmesg for its log")


def _ways() -> list[list[str]]:
    """To be tried in this order. A transient unit where ours is not installed; so it outlives our own unit's end."""
    ways = [python("monitor", "main_in_background")]
    if in_charge():
        transient = ["systemd-run", "--quiet", "--collect", f"--unit={UNIT}", "--property=Type=notify"]
        transient += ["--property=Restart=on-failure", "--property=OOMScoreAdjust=-1000", "--property=KillMode=process"]
        transient += ["--property=DefaultDependencies=no", "--property=IgnoreOnIsolate=yes"]  # to the end of a shutdown
        ways[:0] = [["systemctl", "start", UNIT], [*transient, *python("monitor", "main")]]
    return ways


def _failure_of(command: list[str]) -> str | None:
    """Why it could not be started, None where it was."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", timeout=START_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else plain(done.stderr.strip()) or f"{command[0]} ended with {done.returncode}"
