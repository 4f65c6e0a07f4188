# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads take turns, unless those that have one only wait."""

from __future__ import annotations

import threading
import time

import pytest
from peer import soon

from nbdattach.operations.turns import Turns


class Crowd:
    """Threads that want a turn; each keeps it until `finish`."""

    def __init__(self, turns: Turns, count: int) -> None:
        self._turns = turns
        self._finish = threading.Semaphore(0)
        self._mutex = threading.Lock()
        self.begun = self.most = self._now = 0
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        with self._turns.one():
            with self._mutex:
                self.begun += 1
                self._now += 1
                self.most = max(self.most, self._now)
            self._finish.acquire()
            with self._mutex:
                self._now -= 1

    def await_begun(self, count: int) -> None:
        deadline = time.monotonic() + 30
        while self.begun < count:
            assert time.monotonic() < deadline, f"{self.begun} of {count}"
            time.sleep(0.001)

    def finish(self, count: int) -> None:
        for _ in range(count):
            self._finish.release()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


def test_only_so_many_have_a_turn_at_a_time() -> None:
    crowd = Crowd(Turns(3, stalled=60), 20)
    for done in range(20):
        crowd.await_begun(min(20, done + 3))
        crowd.finish(1)
    crowd.join()
    assert crowd.most == 3


def test_those_that_only_wait_keep_nobody_from_a_turn() -> None:
    """Two servers that do not answer, and eight lines of another one."""
    turns = Turns(2, stalled=0.05)
    hanging = Crowd(turns, 2)
    hanging.await_begun(2)
    with soon():
        others = Crowd(turns, 8)
        others.finish(8)
        others.join()
    hanging.finish(2)
    hanging.join()


def test_after_a_stall_there_are_as_few_turns_as_before() -> None:
    turns = Turns(2, stalled=0.05)
    hanging = Crowd(turns, 6)
    hanging.await_begun(6)
    hanging.finish(6)
    hanging.join()
    assert turns._limit == 2


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_a_turn_that_fails_is_over(kind: type[BaseException]) -> None:
    turns = Turns(1, stalled=60)
    with pytest.raises(kind), turns.one():
        raise kind
    with soon(), turns.one():
        pass
