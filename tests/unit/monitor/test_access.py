# SPDX-License-Identifier: GPL-2.0-or-later
"""Which thread is at a device, and that none waits for another that waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from nbdattach.monitor.access import Access
from nbdattach.monitor.links import Gone

PATIENCE = 60.0


@pytest.fixture
def access() -> Iterator[Access]:
    made = Access(lambda: True)
    yield made
    with made.end():
        pass


def started(target: object) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)  # type: ignore[arg-type]
    thread.start()
    return thread


def test_a_command_and_a_look_of_the_monitor_do_not_wait_for_each_other(access: Access) -> None:
    """The command came while the monitor looked, and what the monitor saw makes it save the record."""
    looks, saved = threading.Event(), threading.Event()

    def look() -> None:
        with access.if_free():
            looks.set()
            with access.changed:
                access.changed.wait_for(lambda: access.held, PATIENCE)
            with access.kernel_calls():
                saved.set()

    looking = started(look)
    assert looks.wait(PATIENCE)
    started(access.hold)
    assert saved.wait(PATIENCE)
    looking.join(PATIENCE)
    assert not looking.is_alive() and access.held


def test_a_look_does_not_wait_for_a_thread_that_is_at_the_device(access: Access) -> None:
    at_it, done = threading.Event(), threading.Event()

    def work() -> None:
        with access.kernel_calls():
            at_it.set()
            done.wait(PATIENCE)

    working = started(work)
    assert at_it.wait(PATIENCE)
    with access.if_free() as free:
        assert not free
    done.set()
    working.join(PATIENCE)
    with access.if_free() as free:
        assert free


def test_a_thread_waits_while_a_command_holds_the_device(access: Access) -> None:
    entered = threading.Event()

    def work() -> None:
        with access.kernel_calls():
            entered.set()

    access.hold()
    access.hold()
    working = started(work)
    assert not access.give_back()
    assert not entered.is_set()
    assert access.give_back()
    assert entered.wait(PATIENCE)
    working.join(PATIENCE)


def test_a_thread_that_waits_is_told_of_the_end(access: Access) -> None:
    ended = threading.Event()

    def work() -> None:
        with pytest.raises(Gone), access.kernel_calls():
            pass
        ended.set()

    access.hold()
    working = started(work)
    with access.end() as first:
        assert first
    access.give_back()
    assert ended.wait(PATIENCE)
    working.join(PATIENCE)
    with access.end() as first:
        assert not first
