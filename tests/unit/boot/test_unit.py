# SPDX-License-Identifier: GPL-2.0-or-later
"""Stopping a unit, by the reason for the stop; and the mark that lets a process outlive the last kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nbdattach.attached.uses import Use, User, Users
from nbdattach.boot import table, unit
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, NbdattachError, NotAttached
from nbdattach.host import systemd
from nbdattach.operations import handover
from nbdattach.reporter import Reporter

UNIT = "nbdattach@nbd0.service"
NBD0 = Device(0)
MOUNTED = User("/srv", Use("mount", "/srv", "mounted at /srv", ("umount", "/srv")))
HELD = User("dm-0", Use("holder", "/dev/dm-0", "held by dm-0", ("dmsetup", "remove", "x")))


def stuck() -> None:
    """As in the kernel."""
    while True:
        signal.pause()


class Host:
    """A machine on which the device is in use for so many tries to detach it, by these users."""

    def __init__(self, busy: int, users: Users = Users([MOUNTED])) -> None:  # noqa: B008 - frozen
        self.busy = busy
        self.users = users
        self.tries = 0
        self.restarting = self.shutting_down = False
        self.reconnect: Callable[[], str] = lambda: "nbd://db1/disk"
        self.said: list[str] = []

    def detach(self, *_: object, **__: object) -> str:
        self.tries += 1
        if self.tries <= self.busy:
            raise DeviceInUse("/dev/nbd0", str(self.users), "release it first")
        return ""

    def down(self) -> str:
        reporter = Reporter()
        reporter.say = self.said.append  # type: ignore[method-assign,assignment]
        return unit.down(NBD0, UNIT, reporter=reporter)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(busy=3)

    class Kernel:
        attached = True

        def __init__(self, device: Device) -> None: ...

    monkeypatch.setattr(table, "down", host.detach)
    monkeypatch.setattr(unit, "Kernel", Kernel)
    monkeypatch.setattr(unit, "users_of", lambda _: host.users)
    monkeypatch.setattr(unit, "_POLL", 0.001)
    monkeypatch.setattr(systemd, "restarting", lambda name: name == UNIT and host.restarting)
    monkeypatch.setattr(systemd, "shutting_down", lambda: host.shutting_down)
    monkeypatch.setattr(handover, "reconnect", lambda _: host.reconnect())
    return host


def test_alone_a_device_in_use_is_refused_at_once(host: Host) -> None:
    with pytest.raises(DeviceInUse):
        host.down()
    assert (host.tries, host.said) == (1, [])


def test_unused_it_is_detached_whatever_the_reason(host: Host) -> None:
    host.busy, host.restarting = 0, True
    assert host.down() == ""
    assert (host.tries, host.said) == (1, [])


def test_restarted_in_use_it_gets_a_new_connection(host: Host) -> None:
    host.restarting = True
    assert host.down() == ""
    said = "/dev/nbd0: in use, so it stays attached: it has a new connection to nbd://db1/disk"
    assert (host.tries, host.said) == (1, [said])


def test_restarted_in_use_it_keeps_its_connection_where_there_is_no_other(host: Host) -> None:
    def refused() -> str:
        raise NbdattachError("nbd://db1", "cannot connect", "is it up?")

    host.restarting, host.reconnect = True, refused
    assert host.down() == ""
    said = "/dev/nbd0: in use, so it stays attached, with its old connection: nbd://db1: cannot connect"
    assert host.said == [said]


def test_at_shutdown_a_mount_is_waited_for(host: Host) -> None:
    host.shutting_down = True
    assert host.down() == ""
    assert host.tries == 4
    assert host.said == ["/dev/nbd0: in use: mounted at /srv; waiting for its users"]


@pytest.mark.parametrize(("user", "limit"), [(MOUNTED, "UNMOUNT_SECONDS"), (HELD, "HOLDER_SECONDS")])
def test_at_shutdown_the_wait_ends(host: Host, monkeypatch: pytest.MonkeyPatch, user: User, limit: str) -> None:
    monkeypatch.setattr(unit, limit, 0.3)
    host.shutting_down, host.busy, host.users = True, 1_000_000, Users([user])
    monkeypatch.setattr(os, "sync", lambda: None)
    with pytest.raises(DeviceInUse):
        host.down()
    assert host.tries > 2


@pytest.mark.parametrize(
    ("synced", "said"),
    [(lambda: None, "data written so far is on its server"), (stuck, "not all written data is on its server")],
)
def test_at_shutdown_what_stays_in_use_is_synced(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, synced: Callable[[], None], said: str
) -> None:
    """Before the network is stopped. A device with a server that is away does not delay that for ever."""

    def sync() -> None:
        (tmp_path / "synced").touch()
        synced()

    monkeypatch.setattr(unit, "HOLDER_SECONDS", 0.05)
    monkeypatch.setattr(unit, "SYNC_SECONDS", 2.0 if synced is stuck else 60.0)
    monkeypatch.setattr(os, "sync", sync)
    host.shutting_down, host.busy, host.users = True, 1_000_000, Users([HELD])
    with pytest.raises(DeviceInUse):
        host.down()
    assert (tmp_path / "synced").exists()
    assert host.said[-1] == f"/dev/nbd0: still in use, so it stays attached; {said}"


def test_at_shutdown_a_device_that_goes_by_itself_ends_the_wait(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> str:
        host.tries += 1
        if host.tries == 1:
            raise DeviceInUse("/dev/nbd0", "mounted at /srv", "release it first")
        raise NotAttached("/dev/nbd0")

    monkeypatch.setattr(table, "down", gone)
    host.shutting_down = True
    with pytest.raises(NotAttached):
        host.down()
    assert host.tries == 2


def answering(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """A systemctl that does this."""
    (folder / "systemctl").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


JOBS = """cat <<'END'
 12 nbdattach@nbd0.service restart running
 13 nbdattach@nbd1.service stop running
 14 nbdattach@nbd10.service restart waiting
END"""


@pytest.mark.parametrize(("name", "expected"), [("nbd0", True), ("nbd1", False), ("nbd10", True), ("nbd2", False)])
def test_a_restart_is_told_from_a_stop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, expected: bool
) -> None:
    answering(monkeypatch, tmp_path, JOBS)
    assert systemd.restarting(f"nbdattach@{name}.service") is expected


@pytest.mark.parametrize(("word", "expected"), [("stopping", True), ("running", False), ("degraded", False)])
def test_a_shutdown_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: str, expected: bool) -> None:
    answering(monkeypatch, tmp_path, f"echo {word}; exit 1")
    assert systemd.shutting_down() is expected


def test_without_systemctl_nothing_is_going_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not systemd.shutting_down()
    assert not systemd.restarting(UNIT)


MARKED = """
from nbdattach.host import storage_daemon
def line():
    return open("/proc/self/cmdline", "rb").read()
before = line()
storage_daemon.outlive()
storage_daemon.outlive()
marked = line()
storage_daemon.outlive(False)
print(marked[:1] == b"@", marked[1:] == before[1:], line() == before, before[:1] != b"@")
"""


def test_the_mark_stands_on_the_first_character_and_can_be_taken_back() -> None:
    done = subprocess.run([sys.executable, "-c", MARKED], capture_output=True, text=True, check=True)
    assert done.stdout == "True True True True\n"


def test_a_process_gets_a_scope_that_no_session_stops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "busctl").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/called\n')
    (tmp_path / "busctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(systemd, "in_charge", lambda: False)
    systemd.give_scope(17, "nbdattach-worker")
    assert not (tmp_path / "called").exists()
    monkeypatch.setattr(systemd, "in_charge", lambda: True)
    systemd.give_scope(17, "nbdattach-worker")
    called = (tmp_path / "called").read_text()
    assert "StartTransientUnit ssa(sv)a(sa(sv)) nbdattach-worker-17.scope fail 4 PIDs au 1 17 " in called
    assert "DefaultDependencies b false" in called
