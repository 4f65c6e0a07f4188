# SPDX-License-Identifier: GPL-2.0-or-later
"""Block devices by their paths: one in a folder of a dead disk is not waited for."""

from __future__ import annotations

import os
import time

import pytest
from loopback import PATIENCE

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
    monkeypatch.setattr(copies, "answer_within", lambda *_: pytest.fail("it starts one"))
    assert numbers_of(["/dev/none", "/dev/nbd0"]) == [None, "43:0"]


def test_a_disk_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = os.getpid()

    def waits(_: str) -> None:
        assert os.getpid() != ours
        time.sleep(PATIENCE)

    monkeypatch.setattr(procfs, "block_number", waits)
    monkeypatch.setattr(lookups, "_A_MOMENT", 0.1)
    assert numbers_of(["/srv/image", "/dev/nbd0"]) == [None, None]
