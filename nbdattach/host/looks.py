# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks at many processes, some of which may keep us waiting in the kernel without end.

A thread of ours looks at one after the other. If it does not get on, it is left behind, and others look at the rest:
each time as many as were left behind so far. So a hundred processes that keep us waiting cost seven seconds, and hide
no other one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from nbdattach.errors import KernelRefused
from nbdattach.host import procfs

T = TypeVar("T", bound=Hashable)
_POLL = 0.05
# Polls without any answer until the threads count as left behind; and if one of them computes. They are counted
# because a machine that stands still for a second, as a guest may, lets no thread get on.
_WAITS, _COMPUTES = 20, 100
# Threads left behind: a bound for memory, and for the time, which is that of ten rounds.
_MOST = 1000


def look_at(processes: Sequence[T], is_one: Callable[[T], bool]) -> tuple[list[T], list[T]]:
    """Those for which `is_one` is true, and those for which it does not return.

    Raises what `is_one` raises; `KernelRefused` if too many keep us waiting, so that others were not looked at.
    """
    looks = _Looks(processes, is_one)
    looks.run()
    answers = [(one, looks.answers.get(one)) for one in processes]
    return [one for one, answer in answers if answer], [one for one, answer in answers if answer is None]


class _Looks:
    def __init__(self, processes: Sequence[T], is_one: Callable[[T], bool]) -> None:
        self.answers: dict[Hashable, bool] = {}
        self._is_one: Callable[..., bool] = is_one
        self._left = deque[Hashable](processes)
        self._mutex = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def run(self) -> None:
        try:
            while self._left and not self._errors:
                if not self._start(min(max(1, len(self._living)), len(self._left))):
                    self._look_here()
                self._await_answers()
        finally:
            self._left.clear()  # a thread that was left behind may go on later, and would look at the rest
        if self._errors:
            raise self._errors[0]

    def _start(self, number: int) -> int:
        """Returns how many of these threads could be started."""
        for started in range(number):
            thread = threading.Thread(target=self._look, daemon=True)
            try:
                if len(self._threads) >= _MOST:
                    return started
                thread.start()
            except RuntimeError:  # the system lets us start no more
                return started
            self._threads.append(thread)
        return number

    def _look_here(self) -> None:
        """Without a thread: only if none was left behind, because this one would be the next."""
        if self._threads:
            cause = f"too many processes ({len(self._living)}) let us wait for a look at their memory"
            raise KernelRefused(procfs.PROC, cause, "do they wait for a dead disk? end them, or bring it back")
        self._look()

    def _look(self) -> None:
        try:
            while (one := self._next()) is not None:
                self.answers[one] = self._is_one(one)
        except BaseException as error:
            self._errors.append(error)

    def _next(self) -> Hashable | None:
        with self._mutex:
            return self._left.popleft() if self._left else None

    def _await_answers(self) -> None:
        """Until the threads have ended, or none of them gets on."""
        before, polls = -1, 0
        while living := self._living:
            if len(self.answers) != before:
                before, polls = len(self.answers), 0
            # On a busy machine it may take long, but it does not wait for a lock.
            elif polls > _WAITS and (polls > _COMPUTES or not any(map(_computes, living))):
                break
            living[0].join(_POLL)
            polls += living[0].is_alive()

    @property
    def _living(self) -> list[threading.Thread]:
        return [one for one in self._threads if one.is_alive()]


def _computes(thread: threading.Thread) -> bool:
    return bool(thread.native_id) and procfs.runs(thread.native_id or 0)
