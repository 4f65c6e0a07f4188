# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes: what is asked in one of its own, and what is not asked of others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbdattach import process


def test_an_answer_comes_from_a_process_that_holds_nobody_up() -> None:
    """Left behind in the kernel, it must not keep open what somebody reads of ours to its end."""

    def where() -> str:
        return " ".join(os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2))

    assert process.answer_within(60, where) == "/dev/null /dev/null /dev/null"


def test_nothing_is_asked_of_a_file_system_that_may_never_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it mounted in a namespace that somebody made for it, or at a place with a blank in its name."""
    for pid, number, kind in (("self", 1, "ext4"), ("7", 2, "fuse.slow")):
        (tmp_path / pid / "ns").mkdir(parents=True)
        (tmp_path / pid / "ns/mnt").symlink_to(f"mnt:[{number}]")
        (tmp_path / pid / "mountinfo").write_text(f"1 1 0:5 / /a\\040b rw - {kind} slow rw\n")
    (tmp_path / "7/stat").write_text("7 (name) S 1")
    (tmp_path / "7/fd").mkdir()
    (tmp_path / "7/fd/3").symlink_to("/a b/file")
    (tmp_path / "7/fd/4").symlink_to("/a/file")
    asked: list[str] = []

    def ask(place: str) -> os.stat_result:
        asked.append(place)
        raise FileNotFoundError

    monkeypatch.setattr(process, "PROC", str(tmp_path))
    monkeypatch.setattr(process, "_remote", {})
    with monkeypatch.context() as asking:
        asking.setattr(os, "stat", ask)
        for fd in (3, 4):
            assert not process.still_open(7, fd, {"43:0"})
    assert asked == [f"{tmp_path}/7/fd/4"]


@pytest.mark.parametrize(
    ("line", "deleted"),
    [
        ("7f0-7f1 r-xp 00000000 fe:01 17    /usr/bin/python3.11 (deleted)", True),
        ("7f0-7f1 r--p 00000000 fe:01 17    /usr/lib/x.so.1", False),
        ("7f0-7f1 rw-s 00000000 00:01 17    /dev/zero (deleted)", False),
        ("7f0-7f1 rw-s 00000000 00:01 17    /memfd:x (deleted)", False),
        ("7f0-7f1 rw-p 00000000 00:00 0", False),
    ],
)
def test_files_that_were_replaced_under_a_process_are_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, deleted: bool
) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/maps").write_text(f"7f0-7f1 rw-p 00000000 00:00 0    [heap]\n{line}\n")
    monkeypatch.setattr(process, "PROC", str(tmp_path))
    assert process.runs_from_deleted_files() == deleted
