# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver's side of one device: when a connection counts as handed over, against a model of the driver."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from unittest import mock

import pytest
from late_driver import LateDriver

from nbdattach import deadline
from nbdattach.attached import memory
from nbdattach.attached.state import Record
from nbdattach.connection.kernel_socket import Link
from nbdattach.device import Device
from nbdattach.kernel import netlink, sysfs, unhurried
from nbdattach.monitor import links
from nbdattach.monitor.links import Links

RECORD = Record("tag", "nbd://db1/disk", "disk", "netlink", 1, "2026-01-02T03:04:05Z", 42)
FAIL = dataclasses.replace(RECORD, on_loss=0.0)


class Sys:
    """The device's values in /sys."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "block/nbd0"
        self._folder.mkdir(parents=True)
        self.say(completed=0, inflight=0)

    def say(self, completed: int, inflight: int) -> None:
        (self._folder / "stat").write_text(f"{completed} 0 0 0 0 0 0 0 {inflight} 0 0\n")

    def count_nothing(self) -> None:
        (self._folder / "queue").mkdir()
        (self._folder / "queue/iostats").write_text("0\n")


@pytest.fixture
def sys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sys:
    monkeypatch.setattr(sysfs, "SYS", str(tmp_path))
    return Sys(tmp_path)


@contextlib.contextmanager
def handed_over(driver: LateDriver, record: Record = RECORD) -> Iterator[tuple[Links, socket.socket, bool]]:
    """The links, which have given the driver a new connection; that; and whether they think so."""
    with mock.patch.object(links, "time", driver.clock), mock.patch.object(deadline, "time", driver.clock):
        yield from _handed_over(driver, record)


def _handed_over(driver: LateDriver, record: Record) -> Iterator[tuple[Links, socket.socket, bool]]:
    made = Links(Device(0), record, [Link(socket.socketpair()[0])])
    made.family = cast(netlink.Family, driver)
    made.cut()
    made.bury_dead(deadline.Deadline(0))
    ours, server = socket.socketpair()
    with server, ours:
        yield made, ours, made.hand_over(Link(socket.socket(fileno=os.dup(ours.fileno()))), deadline.Deadline(60))
    made.close()


@pytest.mark.usefixtures("sys")
@pytest.mark.parametrize("late", [0, 0.05, 0.09])
@pytest.mark.parametrize("first", [1, 2, 3, 4, 7])
def test_a_connection_is_handed_over_only_to_a_driver_that_has_seen_the_old_one_end(first: int, late: int) -> None:
    driver = LateDriver(first, late)
    with handed_over(driver) as (_, connection, taken):
        assert taken
        assert driver.has(connection)


@pytest.mark.usefixtures("sys")
def test_a_connection_that_a_very_late_driver_has_dropped_is_found_out() -> None:
    driver = LateDriver(late=3600)
    with handed_over(driver) as (made, connection, taken):
        assert taken and not driver.has(connection)
        assert not made.is_proven()
        driver.notice()
        assert made.has_dead()


def test_a_request_that_failed_is_no_proof_that_the_driver_has_the_connection(sys: Sys) -> None:
    """With --on-loss fail the driver fails new requests while it has no connection, and counts them as done."""
    driver = LateDriver(late=3600)
    with handed_over(driver, FAIL) as (made, _, taken):
        assert taken
        sys.say(completed=1, inflight=0)
        assert not made.is_proven()
        driver.notice()
        assert made.has_dead()


def test_requests_that_failed_before_all_was_well_again_are_no_proof(sys: Sys) -> None:
    with handed_over(LateDriver()) as (made, _, _taken):
        made.fail_requests()
        sys.say(completed=7, inflight=0)
        assert not made.is_proven()
        made.settle(on_loss=300)
        assert not made.is_proven()
        sys.say(completed=8, inflight=0)
        assert made.is_proven()


@pytest.mark.usefixtures("sys")
def test_a_connection_that_the_driver_uses_is_asked_about_and_left_alone() -> None:
    driver = LateDriver()
    with handed_over(driver) as (made, connection, taken):
        assert taken
        assert not made.is_proven()
        assert not made.has_dead()
        assert driver.has(connection)


@pytest.mark.usefixtures("sys")
def test_the_kernel_is_not_asked_about_a_connection_that_is_known_to_be_dead() -> None:
    """It writes into its log each time, and an outage may last for days."""
    driver = LateDriver()
    with handed_over(driver) as (made, _, _taken):
        assert not made.is_proven()
        made.cut()
        driver.messages.clear()
        assert all(made.has_dead() and not made.any_lives() for _ in range(20))
        assert driver.messages == []


@pytest.mark.usefixtures("sys")
def test_a_monitor_that_holds_no_connection_asks_the_kernel_until_it_is_known_to_be_dead() -> None:
    driver = LateDriver(first=3)
    with mock.patch.object(links, "time", driver.clock):
        made = Links(Device(0), RECORD, [])
        made.family = cast(netlink.Family, driver)
        assert [made.has_dead() for _ in range(20)] == [False] * 2 + [True] * 18
        assert not any(made.any_lives() for _ in range(20))
        assert len(driver.messages) == 3
        driver.clock.sleep(3600)
        assert made.has_dead() and made.has_dead()
        assert len(driver.messages) == 4


def test_a_request_that_is_done_is_proof(sys: Sys) -> None:
    with handed_over(LateDriver()) as (made, _, _taken):
        assert made.has_served_nothing(60)
        sys.say(completed=1, inflight=3)
        assert made.is_proven()
        assert not made.has_served_nothing(60)


def test_a_connection_that_was_dropped_by_a_driver_that_is_later_than_all_doubt_is_found_out(sys: Sys) -> None:
    """It announces the end of the connection before, when it sees that."""
    driver = LateDriver(late=3600)
    with handed_over(driver) as (made, connection, _taken):
        driver.clock.sleep(60)
        assert made.is_proven() and not made.has_dead()  # nothing was asked of it
        driver.notice()
        made.doubt()
        assert made.has_dead() and not driver.has(connection)


def test_requests_that_stand_still_are_a_doubt_however_long_they_do(sys: Sys) -> None:
    driver = LateDriver()
    with handed_over(driver) as (made, _, _taken):
        driver.clock.sleep(3600)
        sys.say(completed=0, inflight=1)
        assert not made.is_proven()
        sys.say(completed=0, inflight=0)
        assert made.is_proven()


def test_where_requests_fail_at_once_none_waits_for_a_server(sys: Sys) -> None:
    """So requests in flight at each look say nothing about the last outage."""
    driver = LateDriver()
    with handed_over(driver, FAIL) as (made, _, _taken):
        sys.say(completed=5, inflight=1)
        made.look()
        assert made.has_served_nothing(10)
        driver.clock.sleep(3600)
        assert not made.has_served_nothing(10)


TWO = dataclasses.replace(RECORD, connections=2, io_timeout=3.0)


def test_a_server_is_stuck_if_requests_stand_still_for_longer_than_each_connection_may_take(sys: Sys) -> None:
    driver = LateDriver()
    with handed_over(driver, TWO) as (made, _, _taken):
        sys.say(completed=0, inflight=1)
        for second in range(11):
            assert made.stuck == 0, second
            driver.clock.sleep(1)
            made.look()
        assert made.stuck == 11
        sys.say(completed=1, inflight=1)
        assert made.stuck == 0


def test_time_in_which_nothing_looked_is_no_sign_of_a_stuck_server(sys: Sys) -> None:
    """A command held the device, and a request came just before it gave it back."""
    driver = LateDriver()
    with handed_over(driver, TWO) as (made, _, _taken):
        made.look()
        driver.clock.sleep(3600)
        sys.say(completed=0, inflight=1)
        assert made.stuck == 0


def test_quiet_is_a_moment_without_requests(sys: Sys) -> None:
    made = Links(Device(0), RECORD, [])
    sys.say(completed=5, inflight=1)
    assert not made.await_quiet(0.01)
    sys.say(completed=6, inflight=0)
    assert made.await_quiet(0)


class NoMemory(LateDriver):
    """It has taken a connection, and there was no memory for its answer."""

    def reconfigure(self, *arguments: object, **more: object) -> None:
        super().reconfigure(*arguments, **more)  # type: ignore[arg-type]
        raise OSError(errno.ENOMEM, "no memory")


@pytest.mark.usefixtures("sys")
def test_a_connection_that_the_driver_may_have_is_ended_where_nobody_can_know() -> None:
    """Otherwise the monitor would offer others without end, while the driver needs none."""
    made = Links(Device(0), dataclasses.replace(RECORD, io_timeout=3.0), [Link(socket.socketpair()[0])])
    made.family = cast(netlink.Family, NoMemory())
    made.cut()
    made.bury_dead(deadline.Deadline(0))
    ours, server = socket.socketpair()
    with server:
        with pytest.raises(OSError, match="no memory"):
            made.hand_over(Link(ours), deadline.Deadline(60))
        assert server.recv(1) == b""


@pytest.mark.usefixtures("sys")
def test_a_buried_connection_stays_open_until_the_driver_has_surely_noticed_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its thread that reads may be in the middle of that, without a reference of its own to the socket."""
    now = [100.0]
    monkeypatch.setattr(links.time, "monotonic", lambda: now[0])
    ours, theirs = socket.socketpair()
    made = Links(Device(0), RECORD, [Link(ours)])
    with theirs:
        made.cut()
        made.bury_dead(deadline.Deadline(0))
        for moment, is_open in ((100.0, True), (104.9, True), (105.1, False)):
            now[0] = moment
            made.close_buried()
            assert (ours.fileno() >= 0) == is_open
    assert not made._buried


def test_a_hand_over_reads_no_file_of_the_queue(sys: Sys) -> None:
    """Another program may be writing to one of them: the kernel then waits for all requests, and they for us."""
    queue = sys._folder / "queue"
    queue.mkdir()
    for name in ("max_sectors_kb", "nr_requests", "iostats"):
        os.mkfifo(queue / name)  # its open(2) would wait
    with handed_over(LateDriver()) as (_, _, taken):
        assert taken


def test_neither_a_moment_waits_for_a_file_of_the_queue(sys: Sys, monkeypatch: pytest.MonkeyPatch) -> None:
    """The monitor's main thread asks for one each second."""
    queue = sys._folder / "queue"
    queue.mkdir()
    os.mkfifo(queue / "iostats")
    monkeypatch.setattr(unhurried, "_known", {})
    try:
        assert memory.moment_of(Device(0)).written == 0
    finally:
        with open(queue / "iostats", "w"):
            pass
