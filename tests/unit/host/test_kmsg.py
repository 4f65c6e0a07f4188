# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines for the kernel's log. A file stands for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbdattach.host import kmsg, log


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kmsg"
    path.touch()
    monkeypatch.setattr(kmsg, "KMSG", str(path))
    return path


def test_line_has_its_level_and_our_name(file: Path) -> None:
    kmsg.write(kmsg.WARNING, "/dev/nbd0: cut")
    assert file.read_text() == "<4>nbdattach: /dev/nbd0: cut\n"


def test_line_of_any_bytes_is_written(file: Path) -> None:
    kmsg.write(kmsg.NOTICE, "name \udcff")
    assert file.read_text() == "<5>nbdattach: name ?\n"


def test_log_of_the_monitor_stays_open(file: Path) -> None:
    say = log.kernel_log()
    say("one")
    kept = file.rename(file.with_name("moved"))
    say("two")
    assert kept.read_text() == "<5>nbdattach: one\n<5>nbdattach: two\n"


def test_log_that_cannot_be_opened_or_takes_nothing_is_no_error(file: Path) -> None:
    file.unlink()
    kmsg.write(kmsg.NOTICE, "lost")
    log.kernel_log()("lost")
    closed = os.open("/dev/null", os.O_RDONLY)
    kmsg.append(closed, kmsg.NOTICE, "lost")
    os.close(closed)


def test_writing_a_line_leaves_no_descriptor_open(file: Path) -> None:
    before = os.listdir("/proc/self/fd")
    kmsg.write(kmsg.NOTICE, "a line")
    assert os.listdir("/proc/self/fd") == before
