# SPDX-License-Identifier: GPL-2.0-or-later
"""Block devices by their paths: one in a folder of a dead disk is not waited for."""

from __future__ import annotations

import time

import pytest
from loopback import PATIENCE, eventually

from nbdattach.host import copies, lookups, procfs
from nbdattach.host.lookups import numbers_of

NUMBERS = {"/dev/nbd0": "43:0", "/srv/nbd1": "43:32"}


def test_each_path_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "block_number", NUMBERS.get)
    assert numbers_of(["/srv/image", "/dev/nbd0", "/srv/nbd1"]) == [None, "43:0", "43:32"]
    assert numbers_of(["/srv/image"]) == [None]
    assert numbers_of([]) == []


def test_paths_in_dev_cost_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "block_number", NUMBERS.get)
    monkeypatch.setattr(copies, "answer_about", lambda *_: pytest.fail("it starts one"))
    assert numbers_of(["/dev/none", "/dev/nbd0"]) == [None, "43:0"]


def test_a_disk_that_does_not_answer_hides_only_its_own_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop device on /dev/nbd0 is its user, whatever disk another one is on."""

    def waits(path: str) -> str | None:
        if path == "/srv/image":
            time.sleep(PATIENCE)
        return NUMBERS.get(path)

    monkeypatch.setattr(procfs, "block_number", waits)
    monkeypatch.setattr(lookups, "_A_MOMENT", 0.1)
    assert numbers_of(["/srv/image", "/dev/nbd0"]) == [None, "43:0"]


def test_one_process_at_most_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """status --watch looks every second, perhaps for days; and no signal ends a process that waits for a disk."""
    paths = ["/srv/dead"]
    monkeypatch.setattr(procfs, "block_number", lambda _: time.sleep(PATIENCE))
    monkeypatch.setattr(lookups, "_A_MOMENT", 0.1)
    monkeypatch.setattr(copies.Copy, "kill", lambda _: None)
    assert numbers_of(paths) == [None]
    left_behind = copies._unanswered[tuple(paths)]
    assert left_behind.hangs
    assert numbers_of(paths) == [None]
    assert copies._unanswered[tuple(paths)] is left_behind
    monkeypatch.undo()
    left_behind._copy.kill()
    eventually(lambda: not left_behind.hangs)
    assert numbers_of(paths) == [None]
