# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks for all devices together whether their servers are back, as long as nothing listens there.

Decision that matters: one thread asks for all of them, one right after the other. A thread for each device, that wakes
up each second, costs the processor five times as much as its question: after each pause, nothing it needs is in the
cache. A device's own thread sleeps meanwhile, until the answer is another one than that nothing listens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nbdattach.connection.probe import Answer, Probe, await_answers

# Seconds that servers of other machines have for their answer; one that needs longer is left to its device's thread.
_WITHIN = 0.1
# Questions that are due so soon are asked now, so that all are asked together after a while.
_TOGETHER = 0.2
# Of so many, sockets are open at a time, as this process may have few.
_AT_ONCE = 100


class Question:
    """Of one device. `pause`: seconds until it is asked again, 0.0 if its thread has to go on, which `wake` wakes."""

    def __init__(self, probe: Probe, pause: Callable[[], float], wake: Callable[[], None]) -> None:
        self.probe = probe
        self.pause = pause
        self.wake = wake
        self.due = time.monotonic() + pause()
        self.answer: Answer | None = None  # the first one that is no refusal


class Asking:
    """All methods may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._questions: list[Question] = []
        self._runs = False

    @contextmanager
    def about(self, question: Question) -> Iterator[Question]:
        """Asks meanwhile. At the end the connection of the answer, if there is one, is the caller's.

        If no thread can be started, the answer is at once that nothing is known.
        """
        with self._changed:
            self._questions.append(question)
            self._changed.notify()
            if not self._runs:
                self._start()
        try:
            yield question
        finally:
            with self._changed:
                if question in self._questions:
                    self._questions.remove(question)

    def _start(self) -> None:
        try:
            threading.Thread(target=self._run, name="asking", daemon=True).start()
            self._runs = True
        except RuntimeError:
            self._give_up()

    def _run(self) -> None:
        try:
            while due := self._due():
                for start in range(0, len(due), _AT_ONCE):
                    self._ask(due[start : start + _AT_ONCE])
        except BaseException:  # no memory: each device's thread goes on by itself
            with self._changed:
                self._runs = False
                self._give_up()
            raise

    def _due(self) -> list[Question]:
        """Waits until there are any. Empty if nothing is asked any more; then the thread has ended."""
        with self._changed:
            while self._questions:
                now = time.monotonic()
                if min(one.due for one in self._questions) <= now:
                    return [one for one in self._questions if one.due <= now + _TOGETHER]
                self._changed.wait(min(one.due for one in self._questions) - now)
            self._runs = False
            return []

    def _ask(self, questions: list[Question]) -> None:
        asked = [(one, one.probe.begin()) for one in questions]
        await_answers([connect for _, connect in asked], _WITHIN)
        for question, connect in asked:
            answer = connect.answer()
            pause = question.pause() if answer.refused else 0.0
            if pause:
                question.due = time.monotonic() + pause
            elif not self._answer(question, answer) and answer.reached:
                answer.reached.close()

    def _answer(self, question: Question, answer: Answer) -> bool:
        """False if its thread has gone on without it."""
        with self._changed:
            if question not in self._questions:
                return False
            self._questions.remove(question)
            question.answer = answer
        question.wake()
        return True

    def _give_up(self) -> None:
        for question in self._questions:
            question.answer = Answer(None)
        wakes = [question.wake for question in self._questions]
        self._questions.clear()
        for wake in wakes:
            wake()


# Of this process.
FOR_ALL = Asking()
