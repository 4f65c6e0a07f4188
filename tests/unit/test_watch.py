# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a watch needs no kernel: its pauses, and that nobody who orders something waits for ever."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pyroute2")

from nbdattach import netlink, state, sysfs
from nbdattach.backend import PATIENT_MS
from nbdattach.client import Connection
from nbdattach.device import Device
from nbdattach.errors import NbdattachError
from nbdattach.link import Link
from nbdattach.state import Record
from nbdattach.target import Target
from nbdattach.watch import FIRST_PAUSE, MAX_PAUSE, Done, Watch, pause_after

RECORD = Record("tag", "nbd://db1/disk", "disk", "netlink", 1, "2026-01-02T03:04:05Z", 42)
ages = st.floats(0, allow_nan=False)


@pytest.mark.parametrize(
    ("age", "pause"), [(0, 0.25), (1, 0.25), (20, 0.25), (80, 1), (240, 3), (400, 5), (1e9, 5), (math.inf, 5)]
)
def test_the_longer_a_server_is_away_the_longer_is_the_pause(age: float, pause: float) -> None:
    assert pause_after(age) == pytest.approx(pause)


@given(ages, ages)
def test_pauses_grow_within_their_limits(one: float, other: float) -> None:
    shorter, longer = sorted((one, other))
    assert 0 < FIRST_PAUSE <= pause_after(shorter) <= pause_after(longer) <= MAX_PAUSE


def test_a_server_that_is_back_is_found_within_a_small_share_of_the_time_it_was_away() -> None:
    for age, later in itertools.pairwise(range(0, 3600, 5)):
        assert pause_after(age) <= max(0.25, later / 50)


ORDERS: dict[str, Callable[[Watch, Done], None]] = {
    "reconnect": lambda watch, done: watch.reconnect(None, done),
    "reconnect to": lambda watch, done: watch.reconnect(Target("db2"), done),
    "resize": lambda watch, done: watch.resize(done),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_order_to_a_watch_that_ends_is_answered(
    when: str, order: Callable[[Watch, Done], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command at the other end of the monitor's socket waits for it without a limit."""
    monkeypatch.setattr(sysfs, "SYS", str(tmp_path))
    monkeypatch.setattr(netlink, "Family", contextlib.nullcontext)
    watch = Watch(Device(0), RECORD, [], lambda _: None)
    outcomes: list[str | NbdattachError] = []
    answered = threading.Event()

    def done(outcome: str | NbdattachError) -> None:
        outcomes.append(outcome)
        answered.set()

    watch.hold()  # so that nothing is done about it meanwhile
    if when == "before":
        order(watch, done)
        watch.stop()
    else:
        watch.stop()
        order(watch, done)
    assert answered.wait(60)
    assert [isinstance(outcome, NbdattachError) for outcome in outcomes] == [True]


class LateDriver:
    """The driver with one connection, which it sees end only after so many calls, as on a busy machine.

    Takes a socket where its connection is dead, and drops it in silence otherwise (nbd.c, nbd_reconnect_socket).
    """

    def __init__(self, calls: int, late: float = 0.0) -> None:
        self._calls = calls
        self._late = late  # seconds from the end of a connection until it is seen
        self._dead = False
        self._mine: socket.socket | None = None

    def reconfigure(self, _index: int, _backend: str, *, sockets: Sequence[int], **_: Any) -> None:
        self._calls -= 1
        self._dead = self._dead or self._calls == 0
        for number in sockets:
            if self._dead:
                self._dead = False
                self._mine = socket.socket(fileno=os.dup(number))
                threading.Thread(target=self._receive, args=[self._mine], daemon=True).start()

    def _receive(self, sock: socket.socket) -> None:
        while sock.recv(1):
            pass
        time.sleep(self._late)
        self._dead = True
        sock.close()

    def has(self, sock: socket.socket) -> bool:
        """Whether this is its connection."""
        mine = self._mine
        return mine is not None and mine.fileno() >= 0 and os.fstat(mine.fileno()) == os.fstat(sock.fileno())


@contextlib.contextmanager
def handed_over(driver: LateDriver) -> Iterator[tuple[Watch, socket.socket, bool]]:
    """A watch that has given the driver a new connection; that; and whether the watch thinks so."""
    watch = Watch(Device(0), RECORD, [Link(socket.socketpair()[0])], lambda _: None)
    watch.cut()
    watch._family = cast(netlink.Family, driver)
    ours, server = socket.socketpair()
    with server:
        fresh = cast(Connection, SimpleNamespace(stream=SimpleNamespace(sock=ours), relay=None, tls=None))
        yield watch, ours, watch._hand_over(fresh)
    watch.stop()


@pytest.fixture
def attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysfs, "SYS", str(tmp_path))
    monkeypatch.setattr(Watch, "_is_there", lambda _: True)


@pytest.mark.usefixtures("attached")
@pytest.mark.parametrize("late", [0, 0.05])
@pytest.mark.parametrize("calls", [1, 2, 3, 4, 7])
def test_a_connection_is_handed_over_only_to_a_driver_that_has_seen_the_old_one_end(calls: int, late: float) -> None:
    driver = LateDriver(calls, late)
    with handed_over(driver) as (_, connection, taken):
        assert taken
        assert driver.has(connection)


@pytest.mark.usefixtures("attached")
def test_a_connection_that_a_very_late_driver_has_dropped_is_found_out() -> None:
    driver = LateDriver(1, late=0.5)
    with handed_over(driver) as (watch, connection, taken):
        assert taken and not driver.has(connection)
        time.sleep(1)
        assert watch._has_dead()


@pytest.mark.usefixtures("attached")
def test_a_connection_that_the_driver_uses_is_asked_about_and_left_alone() -> None:
    driver = LateDriver(1)
    with handed_over(driver) as (watch, connection, taken):
        assert taken
        assert not watch._is_proven()
        assert not watch._has_dead()
        assert driver.has(connection)


def test_the_last_word_of_a_monitor_that_ends_is_the_long_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the driver drops the connection of a slow server, and there is nobody to make another one."""
    timeouts: list[int | None] = []
    monkeypatch.setattr(sysfs, "SYS", str(tmp_path))
    monkeypatch.setattr(Watch, "_is_there", lambda _: True)
    family = SimpleNamespace(reconfigure=lambda *_, timeout=None, **__: timeouts.append(timeout))
    monkeypatch.setattr(netlink, "Family", lambda: contextlib.nullcontext(family))
    monkeypatch.setattr(state, "save_trouble", lambda *_: None)
    watch = Watch(Device(0), dataclasses.replace(RECORD, connections=2), [], lambda _: None)
    watch._family = cast(netlink.Family, family)
    end = watch._end

    def recover() -> None:
        with contextlib.suppress(Exception):  # the attachment is no longer watched
            watch._recovered()

    recovering = threading.Thread(target=recover, daemon=True)

    def end_while_the_thread_recovers(why: str | None) -> None:
        recovering.start()
        recovering.join(0.5)
        end(why)

    monkeypatch.setattr(watch, "_end", end_while_the_thread_recovers)
    watch.stop()
    recovering.join(60)
    assert timeouts[-1] == PATIENT_MS // 1000
