# SPDX-License-Identifier: GPL-2.0-or-later
"""One thread asks for many devices whether their servers are back."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from loopback import eventually
from peer import closed_port, deaf_port, soon

from nbdattach.connection.probe import Answer, Asked, Probe
from nbdattach.monitor import asking
from nbdattach.monitor.asking import Asking, Question
from nbdattach.protocol.target import Target


class Told:
    """A question of a device, and whether its thread was woken."""

    def __init__(self, place: Path | int, pause: Callable[[], float] = lambda: 0.01) -> None:
        target = Target(socket=str(place)) if isinstance(place, Path) else Target("db1", place)
        self.woken = threading.Event()
        self.question = Question(Probe(target, None if target.socket else "127.0.0.1"), pause, self.woken.set)


@pytest.fixture
def one() -> Asking:
    return Asking()


def ended(one: Asking) -> bool:
    return not one._runs and not one._questions


def test_each_device_hears_of_its_own_server(one: Asking, tmp_path: Path) -> None:
    away, back = Told(tmp_path / "away"), Told(tmp_path / "back")
    with one.about(away.question), one.about(back.question), socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "back"))
        server.listen()
        with soon():
            assert back.woken.wait(60)
        answer = back.question.answer
        assert answer and answer.reached and answer.reached.getpeername() == str(tmp_path / "back")
        answer.reached.close()
        assert away.question.answer is None and not away.woken.is_set()
    eventually(lambda: ended(one))


def test_many_are_asked_by_one_thread_that_ends_after_the_last(one: Asking, tmp_path: Path) -> None:
    before = threading.active_count()
    told = [Told(tmp_path / "away") for _ in range(20)]
    with one.about(told[0].question):
        with one.about(told[1].question):
            assert threading.active_count() == before + 1
        assert threading.active_count() == before + 1
    eventually(lambda: ended(one))
    with one.about(told[2].question):
        assert threading.active_count() == before + 1


def test_thousands_do_not_need_a_descriptor_each(one: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, a question would end, and the device's thread would make a whole try each time."""
    at_once, await_answers = list[int](), asking.await_answers

    def count(asked: Sequence[Asked], within: float) -> None:
        at_once.append(len(asked))
        await_answers(asked, within)

    monkeypatch.setattr(asking, "await_answers", count)
    told = [Told(tmp_path / "away") for _ in range(250)]
    with contextlib.ExitStack() as stack:
        for each in told:
            stack.enter_context(one.about(each.question))
        eventually(lambda: sum(at_once) >= 2 * len(told))
        assert max(at_once) <= 100 and not any(each.woken.is_set() for each in told)
    eventually(lambda: ended(one))


def test_a_server_that_does_not_answer_is_left_to_the_thread_of_its_device(one: Asking) -> None:
    with deaf_port() as port:
        told = Told(port)
        with one.about(told.question), soon():
            assert told.woken.wait(60)
    assert told.question.answer == Answer(None)


def test_a_device_whose_requests_have_to_fail_is_woken(one: Asking) -> None:
    pauses = iter([0.01, 0.01, 0.0])
    told = Told(closed_port(), lambda: next(pauses))
    with one.about(told.question), soon():
        assert told.woken.wait(60)
    assert told.question.answer == Answer(None, refused=True)


def test_the_connection_of_a_device_that_has_gone_on_is_closed(one: Asking, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "back"))
        server.listen()
        told = Told(tmp_path / "back")
        one._ask([told.question])  # which is no longer asked
        assert server.accept()[0].recv(1) == b""
    assert told.question.answer is None and not told.woken.is_set()


def test_without_a_thread_each_device_goes_on_by_itself(one: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    told = Told(closed_port())
    with one.about(told.question):
        assert told.question.answer == Answer(None) and told.woken.is_set()
    monkeypatch.undo()
    with one.about(Told(closed_port()).question):
        assert one._runs


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_in_it_is_no_pause_for_ever(one: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(asking, "await_answers", fail)
    told = Told(closed_port())
    with one.about(told.question), soon():
        assert told.woken.wait(60)
    assert told.question.answer == Answer(None) and not one._runs
    for thread in threading.enumerate():
        if thread.name == "asking":
            thread.join()  # it tells of its fault at its end
