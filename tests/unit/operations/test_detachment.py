# SPDX-License-Identifier: GPL-2.0-or-later
"""Which attachment a detach is meant for. What else it does needs the driver: `kernel`."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from host import NBD0, pretend

from nbdattach.attached import state
from nbdattach.attached.state import Record
from nbdattach.kernel import sysfs
from nbdattach.operations import claim, detachment, release, writes


@pytest.mark.parametrize("tag", ["mine", " mine ", "x" * 2000])
def test_attachment_of_another_tag_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    pretend(tmp_path, monkeypatch).attach(tag=sysfs.identifier(tag))
    assert detachment.nothing_to_do(NBD0, None, tag) == ""
    assert "another attachment" in detachment.nothing_to_do(NBD0, None, "other")


def test_the_attachment_that_has_ended_and_is_kept_by_a_program_is_no_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second detach by its handle goes on, and names that program."""
    pretend(tmp_path, monkeypatch).attach()
    state.save(NBD0, Record("mine", "nbd://db1", "", "netlink", 1, "2026-01-02T03:04:05Z", 4711, id="1"))
    handle = state.identity_of(NBD0)
    state.note_end(NBD0, handle)
    assert detachment.nothing_to_do(NBD0, handle, "mine") == ""
    assert detachment.nothing_to_do(NBD0, (*handle[:2], "2"), None) == "not attached"
    assert detachment.nothing_to_do(NBD0, None, "other") == "not attached"


def test_an_attachment_that_came_during_the_release_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no user, but the users that were released are those of another one."""
    pretend(tmp_path, monkeypatch).attach()
    old = Record("mine", "nbd://db1", "", "netlink", 1, "2026-01-02T03:04:05Z", 4711, id="1")
    state.save(NBD0, old)
    monkeypatch.setattr(release, "release", lambda *_: state.save(NBD0, replace(old, id="2")))
    monkeypatch.setattr(claim, "taken", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(writes, "bring_to_rest", lambda *_: pytest.fail("it is detached"))
    assert "another attachment" in detachment.detach(NBD0, 1.0, release=True)
