# SPDX-License-Identifier: GPL-2.0-or-later
"""The devices that the kernel's log mentions, from records as the kernel writes them."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdattach.kernel import driver_log
from nbdattach.kernel.driver_log import DriverLog

REFUSED = b"3,%d,5140900,-;block nbd%d: Other side returned error (108)\n SUBSYSTEM=block\n DEVICE=b43:0\n"
OTHERS = [
    b"3,812,5140900,-;block nbd7: Other side returned error (5)\n SUBSYSTEM=block\n",
    b"3,813,5140901,-;block nbd7: Other side returned error (1080)\n",
    b"6,814,5140902,-;block nbd7: NBD_DISCONNECT\n SUBSYSTEM=block\n",
    b"12,815,5140903,-;somebody: block nbd7: Other side returned error (108)\n",
    b"6,816,5140904,-;\xff\xfe\n",
]


class Log:
    """A socket of records stands for /dev/kmsg: one read gives one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._kernels, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        monkeypatch.setattr(driver_log.os, "open", lambda *_: ours.detach())
        monkeypatch.setattr(driver_log.os, "lseek", lambda *_: 0)
        self.read = DriverLog()

    def say(self, *records: bytes) -> None:
        for record in records:
            self._kernels.send(record)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    made = Log(monkeypatch)
    with contextlib.closing(made.read):
        yield made


def test_each_device_whose_server_is_being_shut_down_is_told_once(log: Log) -> None:
    log.say(REFUSED % (1, 3), REFUSED % (2, 12), REFUSED % (3, 3))
    assert log.read.read() == [3, 12]
    assert log.read.read() == []


def test_other_errors_and_other_programs_are_none_of_our_business(log: Log) -> None:
    log.say(*OTHERS)
    assert log.read.read() == []


def test_records_that_were_overwritten_are_passed_by(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    read, overwritten = os.read, [True]

    def fails_once(number: int, size: int) -> bytes:
        if overwritten.pop() if overwritten else False:
            raise BrokenPipeError
        return read(number, size)

    monkeypatch.setattr(driver_log.os, "read", fails_once)
    log.say(REFUSED % (1, 3))
    assert log.read.read() == [3]


def test_only_what_comes_from_now_on_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "kmsg"
    old.write_bytes(REFUSED % (1, 3))
    monkeypatch.setattr(driver_log, "KMSG", str(old))
    with contextlib.closing(DriverLog()) as now:
        assert os.read(now.fileno(), 1) == b""  # the end of the file
