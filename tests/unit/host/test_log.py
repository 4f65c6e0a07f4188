# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries of the journal, and that nbdattach never waits for it. A socket of ours stands for it."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from nbdattach.host import journal as journal_
from nbdattach.host import log


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(f"{tmp_path}/socket")
    heard.settimeout(60)
    monkeypatch.setattr(journal_, "SOCKET", f"{tmp_path}/socket")
    return heard


def test_an_entry_has_its_priority_and_fields(journal: socket.socket) -> None:
    log.to_journal("nbd0: lost", log.WARNING, {"NBDATTACH_DEVICE": "/dev/nbd0", "NBDATTACH_EVENT": "lost"})
    assert journal.recv(1000).decode() == (
        "MESSAGE=nbd0: lost\nPRIORITY=4\nSYSLOG_IDENTIFIER=nbdattach\n"
        "NBDATTACH_DEVICE=/dev/nbd0\nNBDATTACH_EVENT=lost\n"
    )


def test_a_value_of_several_lines_adds_no_field(journal: socket.socket) -> None:
    log.to_journal("a\nPRIORITY=0", log.INFO, {"NBDATTACH_TAG": "\udcff=\n"})
    assert journal.recv(1000) == (
        b"MESSAGE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\nPRIORITY=6\nSYSLOG_IDENTIFIER=nbdattach\n"
        b"NBDATTACH_TAG\n\x03\0\0\0\0\0\0\0\xff=\n\n"
    )


@pytest.mark.parametrize("hears", [True, False])
def test_a_line_that_the_journal_does_not_take_goes_to_standard_error(
    journal: socket.socket, capfd: pytest.CaptureFixture[str], hears: bool
) -> None:
    if not hears:
        journal.close()
    began = time.monotonic()
    for number in range(2000):  # far more than any queue of the kernel takes (net.unix.max_dgram_qlen)
        log.to_journal(f"line {number}", log.WARNING)
    assert time.monotonic() - began < 20
    assert capfd.readouterr().err.endswith("\n<4>line 1999\n")


def test_only_a_monitor_whose_standard_error_is_the_journal_writes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there = os.fstat(2)
    for stream, write in (
        (f"{there.st_dev}:{there.st_ino}", log.to_journal),
        (f"{there.st_dev}:{there.st_ino + 1}", log.to_stderr),
        ("", log.to_stderr),
    ):
        monkeypatch.setenv("JOURNAL_STREAM", stream)
        assert log.of_service() is write
    monkeypatch.delenv("JOURNAL_STREAM")
    assert log.of_service() is log.to_stderr
