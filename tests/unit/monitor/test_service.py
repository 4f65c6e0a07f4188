# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor's answers to commands, as far as they need no kernel: one request through the real socket."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from host import NBD0, NBD1, Host, pretend

from nbdattach.attached import state
from nbdattach.attached.state import Record
from nbdattach.attached.uses import Use, User, Users
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse, KernelRefused, Malformed, NbdattachError, NotAttached
from nbdattach.host import procfs, spawn, storage_daemon
from nbdattach.kernel import driver_log, netlink
from nbdattach.monitor import control, planned, service
from nbdattach.monitor.control import Door, Request
from nbdattach.monitor.planned import Orders
from nbdattach.monitor.service import Monitor
from nbdattach.monitor.watch import Watch

PATIENCE = 60.0
WATCHED = Record("mine", "nbd://db1/disk", "disk", "netlink", 1, "2026-01-02T03:04:05Z", 4711, reconnect=True)
SAME_VERSION = "is it of the same version?"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = pretend(tmp_path, monkeypatch)
    monkeypatch.setattr(control, "PLACE", f"{made.run}/monitor")
    monkeypatch.setattr(netlink, "Family", contextlib.nullcontext)
    return made


def silent(_: str, *_facts: object) -> None:
    """A log without a reader."""


def watching() -> Monitor:
    """A monitor that watches nbd0."""
    made = Monitor(silent)
    made._watches[NBD0] = Watch(NBD0, WATCHED, [], silent)
    return made


@contextlib.contextmanager
def serving(monitor: Monitor) -> Iterator[None]:
    """It serves one command."""
    with contextlib.closing(Door()) as door:
        thread = threading.Thread(target=lambda: monitor._serve(door.accept()), daemon=True)
        thread.start()
        yield
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the command is not done with"


def refusal(monitor: Monitor, request: Request) -> NbdattachError:
    with serving(monitor), pytest.raises(NbdattachError) as caught:
        control.ask(request, PATIENCE)
    return caught.value


@pytest.mark.usefixtures("host")
def test_a_monitor_answers_with_its_pid() -> None:
    with serving(Monitor(silent)):
        assert control.ask(Request("ping"), PATIENCE) == str(os.getpid())


@pytest.mark.usefixtures("host")
def test_a_resize_that_finds_the_device_in_use_names_its_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a shrunk export; the command prints a line for each, with the command that releases it."""
    mount = User("/srv", Use("mount", "/srv", "mounted at /srv", ("umount", "/srv")))
    monkeypatch.setattr(Orders, "resize", lambda self: self._nobody_uses_it())
    monkeypatch.setattr(planned, "users_of", lambda _: Users([mount]))
    monitor = watching()
    error = refusal(monitor, Request("resize", "nbd0"))
    monitor._watches[NBD0].stop()
    assert isinstance(error, DeviceInUse)
    assert error.users == ("mounted at /srv: umount /srv",)
    assert str(error) == "/dev/nbd0: the export is smaller now, and the device is mounted at /srv"


@pytest.mark.usefixtures("host")
def test_a_monitor_tells_which_nbdattach_it_is_of() -> None:
    with serving(Monitor(silent)):
        assert control.ask(Request("package"), PATIENCE) == spawn.own_package()


def test_a_monitor_that_may_not_read_the_kernels_log_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container, or in a unit that another administrator has tightened."""
    monkeypatch.setattr(driver_log, "KMSG", str(tmp_path / "kmsg"))
    log: list[str] = []
    assert Monitor(lambda line, *_: log.append(line))._driver_log() is None
    assert len(log) == 1 and "cannot detect a server that refuses requests" in log[0]


@pytest.mark.usefixtures("host")
def test_an_unknown_request_is_answered() -> None:
    error = refusal(watching(), Request("paint", "nbd0"))
    assert (str(error), error.hint) == ("monitor: it does not know this request", SAME_VERSION)


UNREADABLE: dict[str, bytes] = {
    "cut": b"{",
    "no object": b"[]",
    "deep": b"[" * 65_000,
    "deep inside": b'{"do": "ping", "trust": ' + b'{"a":' * 9000,
    "a device that is a list": b'{"do": "resize", "device": ["nbd0"]}',
    "a relay that is a word": b'{"do": "watch", "device": "nbd0", "relay": "first"}',
    "a target that is a number": b'{"do": "reconnect", "device": "nbd0", "target": 5}',
    "trust that is a list": b'{"do": "reconnect", "device": "nbd0", "target": "nbds://db1", "trust": []}',
    "no order": b'{"device": "nbd0"}',
    "a field of a later version": b'{"do": "ping", "gently": true}',
    "bytes": b"\xff",
}


def answer(host: Host, message: bytes, descriptors: Sequence[int] = ()) -> dict[str, object]:
    """The monitor's answer to a program of another kind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as command:
        command.settimeout(PATIENCE)
        command.connect(str(host.run / "monitor"))
        socket.send_fds(command, [message], descriptors)
        return json.loads(command.recv(999))  # type: ignore[no-any-return]


@pytest.mark.parametrize("message", UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_request_is_answered(host: Host, message: bytes) -> None:
    with serving(watching()):
        assert answer(host, message) == {
            "thing": "monitor", "cause": "it cannot read the request", "hint": SAME_VERSION, "code": 1,
            "kinds": ["NbdattachError"], "more": {},
        }  # fmt: skip


def test_a_descriptor_that_is_no_socket_is_closed_and_the_request_refused(host: Host) -> None:
    out, into = os.pipe()
    with open(out, "rb") as pipe:
        with serving(watching()):
            said = answer(host, b'{"do": "watch", "device": "nbd0"}', [into])
        os.close(into)
        assert (said["cause"], pipe.read()) == ("it cannot read the request", b"")


def test_a_request_that_fails_in_an_unforeseen_way_is_answered_and_logged(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    logged: list[str] = []
    monitor = Monitor(lambda line, *_: logged.append(line))
    monkeypatch.setattr(monitor, "_carry_out", fail)
    with serving(monitor):
        assert answer(host, b'{"do": "ping"}')["cause"] == "ZeroDivisionError: by zero"
    assert len(logged) == 1
    assert logged[0].endswith(": ZeroDivisionError: by zero")


def test_a_device_that_cannot_be_cut_off_from_its_server_keeps_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.time, "sleep", lambda _: None)
    cut: list[Device] = []

    def cut_off(watch: Watch) -> None:
        cut.append(watch.device)
        raise OSError("no descriptors")

    monkeypatch.setattr(Watch, "cut_off", cut_off)
    made = watching()
    made._watches[NBD1] = Watch(NBD1, WATCHED, [], silent)
    made._cut_off([0, 1])
    assert cut == [NBD0, NBD1]


def test_a_watch_that_was_adopted_takes_no_place_of_one_that_holds_the_connections() -> None:
    made = watching()
    held = made._watches[NBD0]
    made._watch(Watch(NBD0, WATCHED, [], silent), adopted=True)
    assert made._watches[NBD0] is held


@pytest.mark.parametrize("target", ["garbage://x", "nbd://[", ""])
def test_a_state_file_that_says_what_cannot_be_costs_no_other_device_its_monitor(
    host: Host, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr(service.time, "sleep", lambda _: None)
    watched: list[Device] = []
    monkeypatch.setattr(Watch, "check", lambda self: watched.append(self.device))
    host.attach(NBD0)
    host.attach(NBD1)
    state.save(NBD0, replace(WATCHED, target=target, address="127.0.0.1"))
    state.save(NBD1, WATCHED)
    logged: list[str] = []
    Monitor(lambda line, *_: logged.append(line))._adopt()
    assert watched == [NBD1]
    assert logged[0].startswith("nbd0: ")


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    "request_", [Request("resize", "sda"), Request("hold"), Request("reconnect", "nbd0", "nbd://db1:x")]
)
def test_what_cannot_be_meant_is_refused(request_: Request) -> None:
    assert isinstance(refusal(watching(), request_), Malformed)


# -- devices that are not watched --------------------------------------------------------------------------------------

Attach = Callable[[Host], None]
BY_IOCTL = replace(WATCHED, backend="ioctl", reconnect=False)
NOT_WATCHED: dict[str, tuple[Attach, Record | None, type[NbdattachError], str, str]] = {
    "nothing": (lambda _: None, None, NotAttached, "not attached", "nbdattach status shows the attached devices"),
    "a stale record": (
        lambda _: None,
        WATCHED,
        NotAttached,
        "not attached",
        "nbdattach status shows the attached devices",
    ),
    "foreign": (
        lambda host: host.attach(pid=4712),
        WATCHED,
        KernelRefused,
        "not attached by nbdattach, so its server is unknown",
        "disconnect it, and connect",
    ),
    "ioctl": (
        lambda host: host.attach(netlink=False),
        BY_IOCTL,
        KernelRefused,
        "attached by the ioctl backend, whose connections the kernel cannot replace",
        "disconnect it, and connect with --backend netlink",
    ),
    "--no-reconnect": (
        lambda host: host.attach(),
        replace(WATCHED, reconnect=False),
        KernelRefused,
        "attached with --no-reconnect, so the monitor does not watch it",
        "disconnect it, and connect without --no-reconnect",
    ),
}


@pytest.mark.parametrize("do", ["reconnect", "resize", "hold", "paint"])
@pytest.mark.parametrize(("attach", "record", "kind", "cause", "hint"), NOT_WATCHED.values(), ids=NOT_WATCHED)
def test_what_is_not_watched_is_refused_with_the_reason(
    host: Host, do: str, attach: Attach, record: Record | None, kind: type[NbdattachError], cause: str, hint: str
) -> None:
    attach(host)
    if record:
        state.save(NBD0, record)
    error = refusal(Monitor(silent), Request(do, "nbd0"))
    assert (type(error), str(error), error.hint) == (kind, f"/dev/nbd0: {cause}", hint)


def test_a_device_that_should_be_watched_and_is_not_is_not_called_no_reconnect(host: Host) -> None:
    """Its watch has ended with an internal error."""
    host.attach()
    state.save(NBD0, WATCHED)
    assert "--no-reconnect" not in str(refusal(Monitor(silent), Request("reconnect", "nbd0")))


@pytest.mark.parametrize(
    ("attach", "record"), [(lambda _: None, None), (lambda host: host.attach(netlink=False), BY_IOCTL)]
)
def test_what_is_not_by_netlink_is_not_watched_though_a_command_asks(
    host: Host, attach: Attach, record: Record | None
) -> None:
    attach(host)
    if record:
        state.save(NBD0, record)
    monitor = Monitor(silent)
    assert isinstance(refusal(monitor, Request("watch", "nbd0")), NotAttached)
    assert monitor._watches == {}


# -- hands off ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("host")
def test_hands_are_off_for_as_long_as_the_command_lives() -> None:
    monitor = watching()
    watch = monitor._watches[NBD0]
    with serving(monitor), control.hands_off(NBD0):
        assert watch._access.held
    assert not watch._access.held


# -- its end and its devices -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("host")
def test_what_is_no_longer_attached_is_no_longer_watched() -> None:
    said: list[str] = []
    monitor = Monitor(silent)
    monitor._watches[NBD0] = Watch(NBD0, WATCHED, [], lambda line, *_: said.append(line))
    for _ in range(2):
        monitor._begin_tick()
        monitor._tick()
    assert (monitor._watches, said) == ({}, ["nbd0: no longer attached"])


@pytest.mark.usefixtures("host")
def test_commands_are_heard_between_the_looks_at_many_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look may take long on a busy machine. One that has got another watch meanwhile is looked at by that."""
    looked: list[int] = []

    def tick(watch: Watch) -> bool:
        looked.append(watch.device.index)
        time.sleep(0.07)
        return True

    monitor = Monitor(silent)
    for number in range(8):
        device = Device(number)
        monitor._watches[device] = Watch(device, WATCHED, [], lambda *_: None)
    monkeypatch.setattr(Watch, "tick", tick)
    monitor._begin_tick()
    monitor._tick()
    assert len(looked) < 8
    del monitor._watches[Device(7)]
    while monitor._due:
        monitor._tick()
    assert looked == [*range(7)]


@pytest.mark.parametrize(
    ("record", "watched"),
    [
        (WATCHED, True),
        (replace(WATCHED, reconnect=False), False),
        (replace(WATCHED, kernel_pid=1), False),
        (None, False),
    ],
)
def test_a_monitor_takes_over_what_asked_to_be_watched_and_nothing_else(
    host: Host, monkeypatch: pytest.MonkeyPatch, record: Record | None, watched: bool
) -> None:
    monkeypatch.setattr(Watch, "check", lambda _: None)
    host.attach()
    if record:
        state.save(NBD0, record)
    monitor = Monitor(silent)
    monitor._adopt()
    assert (NBD0 in monitor._watches) is watched


def test_one_that_was_replaced_gives_up_its_place_at_shutdown_and_says_so_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    marks: list[bool] = []
    monkeypatch.setattr(storage_daemon, "outlive", marks.append)
    monitor = Monitor(lambda line, *_: said.append(line))
    monitor._watches[NBD0] = Watch(NBD0, WATCHED, [], lambda line, *_: said.append(line))
    monitor._outlive()
    monkeypatch.setattr(procfs, "runs_from_deleted_files", lambda: True)
    monitor._outlive()
    monitor._outlive()
    assert (marks, len(said)) == ([True, False, False], 1)
    assert "systemctl restart nbdattach-monitor.service" in said[0]


# -- one for another ---------------------------------------------------------------------------------------------------

STANDS_IN = """
import sys
from nbdattach.monitor import service as monitor, real_root as realroot, control
from nbdattach.attached import state
from nbdattach.kernel import netlink
state.RUN = sys.argv[1]
control.PLACE = f"{state.RUN}/monitor"
realroot.RealRoot.follow = lambda self: None
monitor.Monitor._listen = lambda self, door, woken: self._serve(door.accept()) or True
with state.monitor_lock() as alone:
    root = realroot.RealRoot() if "stands in" in sys.argv else None
    monitor.Monitor(print, root).run(lambda: print("ready", flush=True))
"""


def other_monitor(host: Host, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STANDS_IN, str(host.run), *words]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout and other.stdout.readline() == "ready\n"
    return other


def test_who_stands_in_makes_room_for_the_real_one(host: Host) -> None:
    with other_monitor(host, "stands in") as other, service._one_place():
        assert other.wait(PATIENCE) == 0
        assert state.monitor_lives()
    assert not state.monitor_lives()


def test_the_real_one_makes_no_room_for_a_second(host: Host) -> None:
    with other_monitor(host) as other:
        with pytest.raises(NbdattachError) as caught, service._one_place():
            pass
        assert str(caught.value) == "monitor: already running on this host"
        other.kill()


# -- its log -----------------------------------------------------------------------------------------------------------

LOGS = """
import os, sys, time
from nbdattach.host.log import to_stderr
began = time.monotonic()
for _ in range(5000):
    to_stderr("x" * 100)
print(time.monotonic() - began < 20)
"""


def test_a_journal_that_reads_nothing_does_not_hang_it() -> None:
    """Its disk may be the one that the monitor has to bring back."""
    reader, writer = os.pipe()
    done = subprocess.run([sys.executable, "-c", LOGS], stderr=writer, stdout=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    with open(reader) as journal:
        lines = journal.read().splitlines()
    assert done.stdout == "True\n"
    assert lines and set(lines) == {"x" * 100}


def test_a_monitor_that_stands_in_does_not_speak_to_the_service_manager_of_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*_: object) -> None:
        raise RuntimeError(os.environ.get("NOTIFY_SOCKET", "nobody to tell"))

    monkeypatch.setenv("NOTIFY_SOCKET", "/run/of/the/parent")
    monkeypatch.setattr(service, "run", run)
    assert service.stand_in() == "nobody to tell"
