# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of the kernel that may not be read for as long as a server is away: the monitor does not wait for them."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import pytest

from nbdattach.kernel import unhurried


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unhurried, "_known", {})


@pytest.fixture
def kernel() -> Iterator[threading.Event]:
    """It shows the file when this is set."""
    made = threading.Event()
    yield made
    made.set()
    while unhurried._under_way:
        time.sleep(0.01)


def test_an_answer_is_always_the_newest() -> None:
    answers = iter([1, 2])
    assert [unhurried.known("file", lambda: next(answers), 0) for _ in range(2)] == [1, 2]


def test_a_file_that_cannot_be_read_now_is_neither_waited_for_nor_asked_again(kernel: threading.Event) -> None:
    asked: list[None] = []

    def blocked() -> int:
        asked.append(None)
        kernel.wait()
        return 7

    before = time.monotonic()
    assert [unhurried.known("file", blocked, 0) for _ in range(100)] == [0] * 100
    assert time.monotonic() - before < 5
    assert len(asked) == 1
    assert unhurried.known("another", lambda: 3, 0) == 3
    kernel.set()
    while unhurried._under_way:
        time.sleep(0.01)
    assert unhurried.known("file", fails, 0) == 7


def test_what_was_known_counts_while_a_file_cannot_be_read(kernel: threading.Event) -> None:
    assert unhurried.known("file", lambda: 1, 0) == 1
    assert unhurried.known("file", lambda: kernel.wait() and 2, 0) == 1


def fails() -> NoReturn:
    raise OSError(errno.EMFILE, "Too many open files")


def test_a_file_that_cannot_be_opened_leaves_what_was_known() -> None:
    assert unhurried.known("file", fails, 0) == 0
    assert unhurried.known("file", lambda: 1, 0) == 1
    assert unhurried.known("file", fails, 0) == 1
