# SPDX-License-Identifier: GPL-2.0-or-later
"""How commands talk to the monitor: a `Door` in a thread here, the command's side in the test itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nbdattach import errors
from nbdattach.attached import state
from nbdattach.device import Device
from nbdattach.errors import (
    DeviceInUse,
    KernelRefused,
    Malformed,
    NbdattachError,
    NoConnection,
    NotAttached,
    Refused,
    TlsFailed,
)
from nbdattach.monitor import control
from nbdattach.monitor.control import Caller, Door, NoMonitor, Request

NBD0 = Device(0)
PATIENCE = 60.0
Serve = Callable[[Caller], object]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /run of our own, without a monitor yet."""
    run = tmp_path / "run"
    monkeypatch.setattr(state, "RUN", str(run))
    monkeypatch.setattr(control, "PLACE", f"{run}/monitor")
    return run / "monitor"


@contextlib.contextmanager
def monitor(serve: Serve) -> Iterator[None]:
    """Does `serve` to one command."""
    failures: list[BaseException] = []
    with contextlib.closing(Door()) as door:

        def run() -> None:
            try:
                with contextlib.closing(door.accept()) as caller:
                    serve(caller)
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the monitor does not end"
    assert failures == []


def replies(outcome: str | NbdattachError, heard: list[Request | None] | None = None) -> Serve:
    """Puts the request into `heard`, and answers it."""

    def serve(caller: Caller) -> None:
        request, descriptors = caller.read()
        assert descriptors == []
        if heard is not None:
            heard.append(request)
        caller.reply(outcome)

    return serve


def hangs_up(caller: Caller) -> None:
    caller.read()


# -- request and reply -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        Request("ping"),
        Request("resize", "nbd0"),
        Request("reconnect", "nbd15", "nbd+unix:///%20?socket=/%C3%A4"),
        Request("reconnect", "nbd0", "nbds://db1", trust={"ca": "/ca", "cert": "", "key": "", "verify": False}),
    ],
)
def test_a_request_arrives_whole_and_its_reply_comes_back(request_: Request) -> None:
    heard: list[Request | None] = []
    with monitor(replies("512 bytes, as before", heard)):
        assert control.ask(request_) == "512 bytes, as before"
    assert heard == [request_]


def test_descriptors_go_with_the_request_to_watch() -> None:
    def serve(caller: Caller) -> None:
        request, descriptors = caller.read()
        assert request == Request("watch", "nbd0")
        for number in descriptors:
            with socket.socket(fileno=number) as sock:
                sock.sendall(b"kept")
        caller.reply("watching")

    one, other = socket.socketpair(), socket.socketpair()
    with one[0], one[1], other[0], other[1], monitor(serve):
        control.watch(NBD0, [one[0], other[0]])
        assert (one[1].recv(9), other[1].recv(9)) == (b"kept", b"kept")


def test_as_many_descriptors_as_a_device_can_have_connections_arrive() -> None:
    counts: list[int] = []

    def serve(caller: Caller) -> None:
        _, descriptors = caller.read()
        counts.append(len(descriptors))
        for number in descriptors:
            os.close(number)
        caller.reply("watching")

    ours, theirs = socket.socketpair()
    with ours, theirs, monitor(serve):
        control.watch(NBD0, [ours] * 64)
    assert counts == [64]


FAILURES = [
    Refused("nbd://db1", "the export has 1 bytes now, 2 were attached", "nbdattach resize /dev/nbd0 takes a new size"),
    NoConnection("nbd://db1", "cannot connect: Connection refused", "is the server running?"),
    TlsFailed("nbd://db1", "no TLS there", "ask for none"),
    KernelRefused("/dev/nbd0", "no", "see dmesg"),
    DeviceInUse("/dev/nbd0", "mounted at /srv\x1b", "release it first"),
    DeviceInUse("/dev/nbd0", "mounted at /srv", "release it first", ["mounted at /srv: umount /srv", "swap: swapoff"]),
    errors.ConnectionLost("nbd://db1", "right now"),
    NbdattachError("monitor", "it cannot read the request", "is it of the same version?"),
    NotAttached("/dev/nbd0"),
    Malformed("'x'", "not an nbd device", "name one"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: type(error).__name__)
def test_an_error_of_the_monitor_is_raised_as_the_same_one(failure: NbdattachError) -> None:
    with monitor(replies(failure)), pytest.raises(NbdattachError) as caught:
        control.ask(Request("reconnect", "nbd0"))
    error = caught.value
    assert type(error) is type(failure)
    assert (error.thing, error.cause, error.hint) == (failure.thing, failure.cause, failure.hint)
    assert (str(error), error.exit_code) == (str(failure), failure.exit_code)
    assert vars(error) == vars(failure)


@pytest.mark.parametrize(
    "failure",
    [errors.ConnectionLost("nbd://db1", "right now"), errors.DeadlinePassed("nbd://db1", 2, "connecting")],
    ids=lambda error: type(error).__name__,
)
def test_a_special_error_comes_back_as_its_kind(failure: NbdattachError) -> None:
    with monitor(replies(failure)), pytest.raises(NoConnection) as caught:
        control.ask(Request("reconnect", "nbd0"))
    assert type(caught.value) is type(failure)
    assert (str(caught.value), caught.value.hint) == (str(failure), failure.hint)


JUNK = [b"", b"{", b"5", b"[]", b'{"do": "ping", "more": 1}', b"{}", b"\xff", b"null"]


@pytest.mark.parametrize("junk", JUNK)
def test_a_request_that_makes_no_sense_is_none(junk: bytes, place: Path) -> None:
    heard: list[Request | None] = []
    with monitor(replies("what?", heard)), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(PATIENCE)
        client.connect(str(place))
        client.send(junk)
        assert json.loads(client.recv(999)) == {"said": "what?"}
    assert heard == [None]


def test_a_command_that_does_not_wait_for_the_reply_is_no_failure() -> None:
    def serve(caller: Caller) -> None:
        caller.read()
        caller.wait_until_gone()
        caller.reply("late")

    with monitor(serve), pytest.raises(NoMonitor):
        control.ask(Request("ping"), patience=0.02)


def test_it_is_known_whether_the_command_still_waits() -> None:
    there: list[bool] = []

    def serve(caller: Caller) -> None:
        caller.read()
        there.append(caller.is_there)
        caller.wait_until_gone()
        there.append(caller.is_there)

    with monitor(serve), pytest.raises(NoMonitor):
        control.ask(Request("ping"), patience=0.5)
    assert there == [True, False]


# -- no monitor --------------------------------------------------------------------------------------------------------


def test_no_monitor_is_said() -> None:
    with pytest.raises(NoMonitor) as caught:
        control.ask(Request("ping"))
    assert str(caught.value) == "monitor: not running (No such file or directory)"
    assert caught.value.hint == "nbdattach monitor starts it and shows any error"
    assert caught.value.exit_code == 1
    assert not control.answers()


def test_the_socket_of_a_killed_monitor_is_no_monitor(place: Path) -> None:
    with contextlib.closing(Door()):
        left = place.with_name("left")
        os.link(place, left)
    left.rename(place)
    with pytest.raises(NoMonitor) as caught:
        control.ask(Request("ping"))
    assert str(caught.value) == "monitor: not running (Connection refused)"


def test_a_monitor_that_goes_away_is_said() -> None:
    with monitor(hangs_up), pytest.raises(NoMonitor) as caught:
        control.ask(Request("ping"))
    assert str(caught.value) == "monitor: went away"


@pytest.mark.parametrize(
    "reply",
    [b"{", b"[]", b"5", b'{"said": 5}', b'{"cause": ["x"], "code": 6}', b'{"code": "x"}', b"[" * 65_000],
    ids=len,
)
def test_a_reply_that_makes_no_sense_is_said(reply: bytes) -> None:
    def serve(caller: Caller) -> None:
        caller.read()
        caller._connection.send(reply)

    with monitor(serve), pytest.raises(NoMonitor, match="monitor: its reply cannot be read"):
        control.ask(Request("ping"))


def test_a_reply_without_words_is_an_error() -> None:
    def serve(caller: Caller) -> None:
        caller.read()
        caller._connection.send(b"{}")

    with monitor(serve), pytest.raises(NbdattachError, match="monitor: its reply has no result"):
        control.ask(Request("ping"))


def test_a_monitor_that_is_silent_is_left() -> None:
    with monitor(Caller.wait_until_gone), pytest.raises(NoMonitor) as caught:
        control.ask(Request("ping"), patience=0.05)
    assert str(caught.value) == "monitor: does not answer (timed out)"


def test_a_monitor_that_answers_is_there() -> None:
    with monitor(replies("4711")):
        assert control.answers()


# -- hands off ---------------------------------------------------------------------------------------------------------


class Hold:
    """A monitor that is told to keep its hands off."""

    def __init__(self, outcome: str | NbdattachError = "held") -> None:
        self.outcome = outcome
        self.heard: list[Request | None] = []
        self.released = threading.Event()

    def __call__(self, caller: Caller) -> None:
        self.heard.append(caller.read()[0])
        caller.reply(self.outcome)
        caller.wait_until_gone()
        self.released.set()


def test_hands_are_off_until_the_command_is_done() -> None:
    hold = Hold()
    with monitor(hold):
        with control.hands_off(NBD0):
            assert hold.heard == [Request("hold", "nbd0")]
            assert not hold.released.wait(0.05)
        assert hold.released.wait(PATIENCE)


def test_hands_are_off_no_longer_when_the_command_fails() -> None:
    hold = Hold()
    with monitor(hold):
        with pytest.raises(ZeroDivisionError), control.hands_off(NBD0):
            raise ZeroDivisionError
        assert hold.released.wait(PATIENCE)


@pytest.mark.parametrize("serve", [Hold(NotAttached("/dev/nbd0")), hangs_up], ids=["not watched", "gone"])
def test_a_monitor_that_has_no_hands_on_it_is_no_failure(serve: Serve) -> None:
    done = False
    with monitor(serve), control.hands_off(NBD0):
        done = True
    assert done


@contextlib.contextmanager
def stopped_command(place: Path) -> Iterator[tuple[int, Caller]]:
    """A process that has asked for something, and is stopped."""
    with contextlib.closing(Door()) as door:
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException), control.hands_off(NBD0):
                os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        try:
            with contextlib.closing(door.accept()) as caller:
                assert caller.read()[0] == Request("hold", "nbd0")
                caller.reply("held")
                os.waitpid(pid, os.WUNTRACED)
                yield pid, caller
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_stopped_command_does_not_keep_the_monitors_hands_off_for_ever(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_LOOK_SECONDS", 0.05)
    with stopped_command(place) as (pid, caller):
        assert caller.pid == pid
        assert not caller.wait_until_gone()


def test_a_command_that_goes_on_is_waited_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_LOOK_SECONDS", 60.0)
    with stopped_command(place) as (pid, caller):
        os.kill(pid, signal.SIGCONT)
        assert caller.wait_until_gone()


def test_without_a_monitor_hands_are_off_anyway() -> None:
    done = False
    with control.hands_off(NBD0):
        done = True
    assert done


def test_a_monitor_that_dies_at_that_moment_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    monkeypatch.setattr(control, "_connected", lambda _: ours)
    with control.hands_off(NBD0):
        pass


# -- the socket --------------------------------------------------------------------------------------------------------


def test_only_root_gets_through_the_door(place: Path) -> None:
    with contextlib.closing(Door()):
        assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert not place.exists()


def test_a_door_takes_the_place_of_one_that_was_left_behind(place: Path) -> None:
    place.parent.mkdir()
    place.touch()
    with monitor(replies("4711")):
        assert control.answers()
