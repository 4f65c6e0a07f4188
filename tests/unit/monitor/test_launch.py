# SPDX-License-Identifier: GPL-2.0-or-later
"""The start of the monitor if none runs: each way in its turn, and the error if all fail."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nbdattach.attached import state
from nbdattach.host import spawn
from nbdattach.monitor import control, launch
from nbdattach.monitor.control import NoMonitor

PROGRAM = "/usr/bin/nbdattach"


class Host:
    """These ways to start a monitor succeed. `others` starts one besides, as another command would."""

    def __init__(self, works: Sequence[str] = (), others: bool = False) -> None:
        self.works = works
        self.others = others
        self.up = False
        self.program, self.package = PROGRAM, spawn.PACKAGE  # of the unit, if it is installed
        self.tried: list[str] = []
        self.commands: list[list[str]] = []

    def run(self, *words: str, **_: Any) -> subprocess.CompletedProcess[str]:
        command = list(words)
        way = {"systemctl": "unit", "systemd-run": "transient"}.get(command[0], "daemon")
        self.tried.append(way)
        self.commands.append(command)
        self.up = self.up or self.others or way in self.works
        code = 0 if way in self.works else 5
        return subprocess.CompletedProcess(command, code, "", "" if code == 0 else f"no {way}\x1b\n")


@pytest.fixture(autouse=True)
def run_of_our_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(state, "RUN", str(tmp_path))


def hosted(monkeypatch: pytest.MonkeyPatch, host: Host, systemd: bool = True) -> Host:
    monkeypatch.setattr(launch.systemd, "in_charge", lambda: systemd)
    monkeypatch.setattr(launch.systemd, "program", lambda _: host.program)
    monkeypatch.setattr(launch.spawn, "package_of", {PROGRAM: host.package}.get)
    monkeypatch.setattr(control, "answers", lambda: host.up)
    monkeypatch.setattr(launch.programs, "run", host.run)
    return host


def test_a_monitor_that_runs_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    host = hosted(monkeypatch, Host())
    host.up = True
    launch.ensure_monitor()
    assert host.tried == []


@pytest.mark.parametrize(
    ("systemd", "works", "tried"),
    [
        (True, "unit", ["unit"]),
        (True, "transient", ["unit", "transient"]),
        (True, "daemon", ["unit", "transient", "daemon"]),
        (False, "daemon", ["daemon"]),
    ],
)
def test_systemd_comes_first_where_it_is_in_charge(
    monkeypatch: pytest.MonkeyPatch, systemd: bool, works: str, tried: list[str]
) -> None:
    host = hosted(monkeypatch, Host([works]), systemd)
    launch.ensure_monitor()
    assert host.tried == tried


@pytest.mark.parametrize("package", [spawn.PACKAGE, None])
@pytest.mark.parametrize("program", [PROGRAM, ""])
def test_a_unit_of_the_same_code_or_of_its_admin_is_started(
    monkeypatch: pytest.MonkeyPatch, program: str, package: str
) -> None:
    host = Host(["transient"])
    host.program, host.package = program, package
    hosted(monkeypatch, host)
    launch.ensure_monitor()
    assert host.tried == ["unit", "transient"]
    assert "--unit=nbdattach-monitor.service" in host.commands[1]


@pytest.mark.parametrize("way", ["transient", "daemon"])
def test_a_unit_of_another_code_is_not_started(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """A checkout beside a package; systemd-run refuses the name of a unit that is installed."""
    host = Host(["unit", way])
    host.package = "/usr/lib/python3/dist-packages/nbdattach"
    hosted(monkeypatch, host)
    launch.ensure_monitor()
    assert "unit" not in host.tried
    assert host.tried[-1] == way
    assert "--unit=nbdattach-monitor-beside.service" in host.commands[0]


def test_when_no_way_works_the_last_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    hosted(monkeypatch, Host())
    with pytest.raises(NoMonitor) as caught:
        launch.ensure_monitor()
    assert str(caught.value) == r"monitor: cannot be started: no daemon\x1b"


def test_a_monitor_that_another_command_has_started_meanwhile_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two connects at boot: one monitor can run, and the second to start one gets an error."""
    hosted(monkeypatch, Host(others=True))
    launch.ensure_monitor()


def test_a_daemon_that_does_not_come_up_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    hosted(monkeypatch, Host())
    with pytest.raises(launch.NbdattachError) as caught:
        launch.in_background()
    assert (str(caught.value), caught.value.hint) == (r"monitor: no daemon\x1b", "see dmesg for its log")


def test_a_monitor_gets_nothing_that_is_meant_for_the_process_which_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`connect -f` in a unit of Type=notify: its monitor told systemd READY=1 and STOPPING=1 in its place."""
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "RES_OPTIONS"):
        monkeypatch.setenv(name, name)
    monkeypatch.setenv("SSL_CERT_DIR", "/etc/certificates")
    failure = launch._failure_of(["/bin/sh", "-c", "env | cut -d = -f 1 | sort >&2; exit 1"])
    assert failure is not None
    names = set(failure.split("\\n")) - {"PWD", "SHLVL", "_", "OLDPWD"}  # which the shell adds
    assert names <= {"PATH", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"}
    assert {"PATH", "SSL_CERT_DIR"} <= names


def test_after_a_monitor_that_was_about_to_end_another_one_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lives for a moment, and no longer answers."""
    host = hosted(monkeypatch, Host(works=["daemon"]), systemd=False)
    lives = iter([True, True, False])
    monkeypatch.setattr(state, "monitor_lives", lambda: next(lives))
    launch.ensure_monitor()
    assert host.tried == ["daemon"]
