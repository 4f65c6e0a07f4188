# SPDX-License-Identifier: GPL-2.0-or-later
"""When data that a program wrote counts as lost. What else is done about writes needs the driver: `kernel`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from host import NBD0, pretend

from nbdattach.attached import state
from nbdattach.deadline import Deadline
from nbdattach.errors import KernelRefused
from nbdattach.host.blocking import Killed, Opening, WriteBack
from nbdattach.kernel.node import Node
from nbdattach.operations import claim, writes
from nbdattach.reporter import QUIET, silent


def test_nothing_is_lost_because_the_process_that_looks_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when memory is short. A later disconnect must not refuse because of a flush that failed."""
    pretend(tmp_path, monkeypatch).attach()
    (tmp_path / "file").touch()
    node = Node(NBD0, -1)
    node._caches = WriteBack(f"{tmp_path}/file")
    node._caches.open(Deadline(60))
    for pid in node.helpers:
        os.kill(pid, signal.SIGKILL)
    node._caches._process.wait()
    with pytest.raises(KernelRefused, match="killed"):
        writes.was_written(node)
    assert not state.is_unflushed(NBD0)
    node.close()


def test_a_process_that_was_killed_before_it_opened_the_device_is_said_to_be_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that open failed with the error that has the number of the signal."""

    def start(_: Node, __: Deadline) -> None:
        raise Killed

    pretend(tmp_path, monkeypatch).attach()
    monkeypatch.setattr(Node, "open_caches", start)
    with pytest.raises(
        KernelRefused, match=r"^/dev/nbd0: a process of ours that looks for its last writes was killed$"
    ):
        writes.bring_to_rest(Node(NBD0, -1), False, QUIET)


def test_a_process_that_was_killed_before_it_claimed_the_device_is_said_to_be_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wait(_: Opening, __: Deadline) -> int:
        raise Killed

    monkeypatch.setattr(Opening, "wait", wait)
    with pytest.raises(KernelRefused, match=r"^/dev/nbd0: a process of ours that opens it was killed$"):
        claim.claimed_once(NBD0, False, silent)


@pytest.mark.parametrize(("taken", "patience", "long"), [(0.25, None, False), (5.25, None, True), (5.25, 10.0, False)])
def test_a_long_flush_outlives_an_upgrade(
    monkeypatch: pytest.MonkeyPatch, taken: float, patience: float | None, long: bool
) -> None:
    """But with --force it is soon over, and the files of our modules may be on a disk that is away, too."""
    loaded: list[bool] = []

    def flush(_: Node, __: float | None, progress: Callable[[float], None], ___: tuple[str, ...]) -> None:
        progress(taken)

    monkeypatch.setattr(Node, "flush", flush)
    monkeypatch.setattr(writes.upgrade, "load_all", lambda: loaded.append(True))
    writes._flush(Node(NBD0, -1), patience, QUIET)
    assert any(loaded) == long
