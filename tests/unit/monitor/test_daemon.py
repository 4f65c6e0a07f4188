# SPDX-License-Identifier: GPL-2.0-or-later
"""A process in the background tells the one that started it whether it is ready, and tells it nothing later."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nbdattach.monitor import daemon

Ready = Callable[[], None]


def test_it_says_one_word_to_its_command_and_nothing_to_who_has_that_number_later(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    say = daemon._once(writer)
    say("ready")
    later = os.open(tmp_path / "later", os.O_WRONLY | os.O_CREAT)
    try:
        assert later == writer
        say("an error")
        assert os.read(reader, 99) == b"ready"
        assert os.fstat(later).st_size == 0
    finally:
        os.close(later)
        os.close(reader)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda ready: ready(), ""),
        (lambda ready: (ready(), 1 / 0), ""),
        (lambda _: 1 / 0, "division by zero"),
        (lambda _: None, "ended without a message"),
        (lambda _: os._exit(3), "ended without a message"),
    ],
    ids=["ready", "ready, then an error", "an error", "an end", "a crash"],
)
def test_its_start_tells_whether_it_is_ready(run: Callable[[Ready], None], said: str) -> None:
    assert daemon.start(run) == said


def test_it_has_left_what_was_its_starters(tmp_path: Path) -> None:
    def run(ready: Ready) -> None:
        places = [os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)]
        (tmp_path / "seen").write_text(" ".join([os.getcwd(), *places, str(os.getsid(0) == os.getpid())]))
        ready()

    assert daemon.start(run) == ""
    assert (tmp_path / "seen").read_text() == "/ /dev/null /dev/null /dev/null True"
