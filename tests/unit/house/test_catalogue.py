# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of servers is made of all setups, and says what a probe has found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import page
import pytest
import releases
from setups import BEYOND, LEFT_OUT, SETUPS

PAGE = (Path(__file__).resolve().parents[3] / "doc/servers.md").read_text()


def test_each_setup_has_a_row_of_results_and_one_of_remarks() -> None:
    rows = Counter(line.split("|")[1].strip() for line in PAGE.splitlines() if line.startswith("| "))
    assert [setup.name for setup in SETUPS if rows[setup.name] < 2] == []
    assert [name for name in LEFT_OUT if rows[name] != 1] == []


def test_each_setup_has_a_name_of_its_own_and_a_package_that_is_pinned() -> None:
    assert len({setup.name for setup in SETUPS}) == len(SETUPS)
    unpinned = [
        (setup.name, release)
        for setup in SETUPS
        for release in setup.releases
        if setup.package not in releases.PINNED[release]
    ]
    assert unpinned == []


def test_what_is_known_of_a_family_is_on_the_page() -> None:
    assert [line for lines in BEYOND.values() for line in lines if line not in " ".join(PAGE.split())] == []


def result(name: str, release: str, version: str, **row: str) -> page.Result:
    return {"setup": name, "release": release, "version": version, "row": row, "seen": [], "date": "2026-11-29"}


def test_releases_with_the_same_results_share_a_row_and_a_note() -> None:
    failed = "no: exit 4: nbd://127.0.0.1/disk: the export has 0 bytes"
    text = page.text(
        [
            result("nbdkit-memory", "bookworm", "1.32.5-1", connect=failed),
            result("nbdkit-memory", "trixie", "1.42.3-1", connect=failed),
            result("nbdkit-memory", "sid", "1.48.1-1", connect="yes"),
        ],
        "7.2",
        15,
    )
    assert "| nbdkit-memory | 1.32.5, 1.42.3 | - | - | - | no (1) |" in text
    assert "| nbdkit-memory | 1.48.1 | - | - | - | yes |" in text
    assert "1. exit 4: the export has 0 bytes" in text


@pytest.mark.parametrize(
    ("cause", "shown"),
    [
        ("it has ext4 18ad5b53-39a3-49f1-a4d7-c200bb75cf8c", "it has ext4 UUID"),
        ("nbd://127.0.0.1: this is another disk", "this is another disk"),
        ("nbd+unix:///?socket=/r/run/server.sock: no answer", "no answer"),
        ("a | b\n<c>", "a / b (c)"),
    ],
)
def test_a_note_has_nothing_that_differs_each_time_and_no_mark_of_markdown(cause: str, shown: str) -> None:
    assert page.plain(cause) == shown
