# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks at processes: one that keeps us waiting hides no other one, and no failure passes for an answer."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from nbdattach.deadline import Deadline
from nbdattach.errors import KernelRefused
from nbdattach.host import looks
from nbdattach.host.looks import look_at

ONE = 1000


@pytest.fixture(autouse=True)
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What keeps a look waiting. No thread is left to the next test."""
    monkeypatch.setattr(looks, "_WAITS", 6)
    event, before, patience = threading.Event(), len(os.listdir("/proc/self/task")), Deadline(60)
    yield event
    event.set()
    while len(os.listdir("/proc/self/task")) > before:
        assert patience.sleep(0.001)


@pytest.fixture
def is_one(ends: threading.Event) -> Callable[[int], bool]:
    """All but `ONE` keep it waiting."""
    return lambda number: number == ONE or (ends.wait() and False)


@pytest.mark.parametrize("before", [0, 1, 5, 6, 100])
def test_processes_that_keep_us_waiting_hide_no_other_one(is_one: Callable[[int], bool], before: int) -> None:
    """Each program that is started from a dead disk waits like that."""
    began = time.monotonic()
    assert look_at([*range(before), ONE], is_one) == ([ONE], [*range(before)])
    assert time.monotonic() - began < 20  # one after the other would take a second each


def test_a_look_takes_one_thread_while_nothing_keeps_it_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def count(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", count)
    assert look_at(range(500), lambda number: number % 100 == 7) == ([7, 107, 207, 307, 407], [])
    assert len(started) == 1


def test_a_process_is_not_left_out_because_those_before_took_long(
    ends: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "_COMPUTES", 6)

    def look(number: int) -> bool:
        if number == 9:
            ends.wait()
        time.sleep(0.02)
        return number == ONE

    assert look_at([*range(10), ONE], look) == ([ONE], [9])


def test_a_look_that_only_computes_is_waited_for() -> None:
    """A process may have many mappings, on a busy machine."""

    def compute_for_a_while(_: int) -> bool:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)  # without the lock of the interpreter
        return True

    assert look_at([ONE], compute_for_a_while) == ([ONE], [])


def test_a_machine_that_stood_still_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a guest that was suspended: seconds have passed, but nobody had time to answer."""
    began, now, join = threading.Event(), time.monotonic, threading.Thread.join

    def stand_still(thread: threading.Thread, timeout: float | None = None) -> None:
        assert began.wait(60)
        still.setattr(time, "monotonic", lambda: now() + 3600)
        join(thread, timeout)

    def look(_: int) -> bool:
        began.set()
        time.sleep(0.1)
        return True

    with monkeypatch.context() as still:  # and not in the fixture, which waits for the thread by that clock
        still.setattr(threading.Thread, "join", stand_still)
        assert look_at([ONE], look) == ([ONE], [])


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_processes_are_looked_at_even_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert look_at([1, ONE], lambda number: number == ONE) == ([ONE], [])


@pytest.mark.parametrize("most", [True, False])
def test_a_process_that_was_not_looked_at_does_not_pass_for_no_user(
    is_one: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch, most: bool
) -> None:
    start = threading.Thread.start

    def start_one(thread: threading.Thread) -> None:
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        start(thread)

    if most:
        monkeypatch.setattr(looks, "_MOST", 1)
    else:
        monkeypatch.setattr(threading.Thread, "start", start_one)
    with pytest.raises(KernelRefused, match=r"^/proc: too many processes \(1\) let us wait"):
        look_at([1, ONE], is_one)


def test_a_failed_look_does_not_pass_for_an_answer(ends: threading.Event) -> None:
    """As the memory may not suffice for the mappings of a large process."""

    def fail(number: int) -> bool:
        if number == 1:
            raise MemoryError
        ends.wait()
        return False

    for first in (1, 2):
        with pytest.raises(MemoryError):
            look_at([first, 1, 3, ONE], fail)


def test_a_thread_that_was_left_behind_looks_at_nothing_later(ends: threading.Event) -> None:
    seen, threads = [], set()

    def fail(number: int) -> bool:
        seen.append(number)
        threads.add(threading.current_thread())
        if number == ONE:
            raise MemoryError
        return ends.wait()

    with pytest.raises(MemoryError):
        look_at([1, ONE, 2], fail)
    ends.set()
    for thread in threads:
        thread.join()
    assert seen == [1, ONE]
