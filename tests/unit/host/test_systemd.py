# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages to the service manager, and that nbdattach never waits for it."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from nbdattach.host import systemd


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(f"{tmp_path}/notify")
    heard.settimeout(60)
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
    return heard


def test_it_hears(manager: socket.socket) -> None:
    systemd.notify("READY=1")
    assert manager.recv(100) == b"READY=1"


def test_one_that_hears_nothing_does_not_hang_us(manager: socket.socket) -> None:
    """Far more messages than any queue of the kernel takes (net.unix.max_dgram_qlen)."""
    began = time.monotonic()
    for _ in range(20000):
        systemd.notify("STATUS=watching 1 device(s)")
    assert time.monotonic() - began < 20
    manager.close()


@pytest.mark.parametrize(
    ("said", "program"),
    [
        (
            "{ path=/usr/bin/nbdattach ; argv[]=/usr/bin/nbdattach monitor ; ignore_errors=no ; start_time=[n/a] ; "
            "stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }\n",
            "/usr/bin/nbdattach",
        ),
        ("{ path=/opt/a b/nbdattach ; argv[]=/opt/a b/nbdattach monitor ; }\n", "/opt/a b/nbdattach"),
        ("\n", ""),  # no such unit
        ("", ""),  # no systemctl
    ],
)
def test_program_of_a_unit_is_what_it_starts(monkeypatch: pytest.MonkeyPatch, said: str, program: str) -> None:
    asked: list[tuple[str, ...]] = []

    def run(*command: str) -> str:
        asked.append(command)
        return said

    monkeypatch.setattr(systemd, "_run", run)
    assert systemd.program("nbdattach-monitor.service") == program
    assert asked == [("systemctl", "show", "--property=ExecStart", "--value", "nbdattach-monitor.service")]
