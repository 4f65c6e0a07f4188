# SPDX-License-Identifier: GPL-2.0-or-later
"""Many jobs at the same time: few threads while they go on, and as many as there are jobs if they wait."""

from __future__ import annotations

import threading

import pytest

from nbdattach import at_once

SOON = 60.0
MANY = 200


def test_each_job_has_its_result() -> None:
    assert dict(at_once.outcomes(lambda job: -job, range(MANY), SOON)) == {job: -job for job in range(MANY)}


def test_no_jobs_are_no_outcomes() -> None:
    assert [*at_once.outcomes(lambda job: job, [], SOON)] == []


def test_jobs_that_go_on_have_few_threads() -> None:
    threads: set[threading.Thread] = set()
    for _ in at_once.outcomes(lambda _: threads.add(threading.current_thread()), range(MANY), SOON):
        pass
    assert len(threads) < MANY // 2  # some more if the machine lets one of them wait


@pytest.mark.parametrize("waiting", [1, at_once._FEW, 100, MANY - 1])
def test_jobs_that_wait_hold_up_no_other_one(waiting: int) -> None:
    """The first ones end only when all others have."""
    others = threading.Semaphore(0)

    def work(job: int) -> None:
        if job < waiting:
            assert others.acquire(timeout=SOON)
            others.release()

    ended = []
    for job, _ in at_once.outcomes(work, range(MANY), 0.05):
        ended.append(job)
        if len(ended) == MANY - waiting:
            others.release()
    assert {*ended[: MANY - waiting]} == {*range(waiting, MANY)}
    assert sorted(ended) == [*range(MANY)]


def test_a_few_that_go_on_do_not_hide_that_the_others_wait() -> None:
    """The first ones leave one thread to the others, and there is always an end. Those after them need companions."""
    first, alone, companions = at_once._FEW - 1, 2 * at_once._FEW, 8
    others, meeting = threading.Event(), threading.Barrier(companions)

    def work(job: int) -> None:
        if job < first:
            assert others.wait(SOON)
        elif job >= first + alone:
            meeting.wait(SOON)  # raises if they do not come

    ended = set()
    for job, _ in at_once.outcomes(work, range(first + alone + 10 * companions), 10 * SOON):
        ended.add(job)
        if len(ended) == alone + 10 * companions:
            others.set()
    assert len(ended) == first + alone + 10 * companions


@pytest.mark.parametrize("threads", [1, 3, at_once._FEW + 5])
def test_a_limit_of_threads_keeps_no_job_from_its_turn(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """As in a container. The first jobs wait."""
    start, left = threading.Thread.start, [*range(threads)]
    over = threading.Event()

    def limited(thread: threading.Thread) -> None:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(thread)

    def work(job: int) -> int:
        begun.append(job)
        if job < threads - 1:
            assert over.wait(SOON)
        return -job

    begun: list[int] = []
    ended: dict[int, int] = {}
    monkeypatch.setattr(threading.Thread, "start", limited)
    for job, result in at_once.outcomes(work, range(MANY), 0.01):
        ended[job] = result
        if len(ended) == MANY - threads + 1:
            over.set()
    assert ended == {job: -job for job in range(MANY)}
    assert len(begun) == MANY


def test_without_any_thread_the_error_is_that_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    with pytest.raises(RuntimeError):
        next(at_once.outcomes(lambda job: job, range(MANY), SOON))


def test_an_error_is_that_of_the_caller_and_keeps_no_other_job_from_its_turn() -> None:
    ended = []
    with pytest.raises(ZeroDivisionError):
        for job, _ in at_once.outcomes(lambda job: 1 // job, range(MANY), SOON):
            ended.append(job)
    assert sorted(ended) == [*range(1, MANY)]


def test_a_caller_that_has_enough_gets_no_more() -> None:
    begun: list[int] = []
    for _ in at_once.outcomes(begun.append, range(MANY), SOON):
        break
    assert len(begun) <= 3 * at_once._FEW
