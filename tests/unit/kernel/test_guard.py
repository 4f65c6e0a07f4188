# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard of a connect that was killed, without a driver: kernel/test_crash.py has the rest."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from peer import soon

from nbdattach.kernel import guard, ioctl

PID = 42


class Driver:
    """A device that is attached until it is ended; `waits`: an open of it, until then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, waits: bool) -> None:
        self.ended_by: list[str] = []
        self.disconnected: list[int] = []
        self._gone = threading.Event()
        self._waits = waits
        self._really_open = os.open
        monkeypatch.setattr(guard, "_HANGS", 0.05)
        monkeypatch.setattr(guard, "attribute", self._attribute)
        monkeypatch.setattr(guard, "tidied", lambda *_: True)
        monkeypatch.setattr(guard.netlink, "Family", lambda: self)
        monkeypatch.setattr(ioctl, "nbd_clear_sock", lambda _: self._end("ioctl"))
        monkeypatch.setattr(os, "open", self._open)

    def _attribute(self, _: str, name: str) -> str:
        return "" if self._gone.is_set() else {"backend": "tag", "pid": str(PID)}[name]

    def _open(self, path: str, flags: int, *more: int, **named: Any) -> int:
        if path != "/dev/nbd7":
            return self._really_open(path, flags, *more, **named)
        if self._waits:
            self._gone.wait()
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return self._really_open(os.devnull, flags)

    def _end(self, how: str) -> None:
        self.ended_by.append(how)
        self._gone.set()

    def disconnect(self, index: int) -> None:
        self.disconnected.append(index)
        self._end("netlink")

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("waits", [False, True], ids=["opens", "waits"])
def test_an_attachment_is_ended_even_if_its_device_cannot_be_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waits: bool
) -> None:
    """The kernel looks for partitions at the open, and waits for a server that has just died, without a limit."""
    driver = Driver(monkeypatch, waits=waits)
    ours, theirs = os.pipe()
    os.close(theirs)  # as the kernel does for a connect that is killed
    with soon():
        guard.guard(ours, "/dev/nbd7", str(tmp_path / "nbd7.json"), "tag\n", PID)
    os.close(ours)
    assert (driver.ended_by, driver.disconnected) == ((["netlink"], [7]) if waits else (["ioctl"], []))


def test_a_connect_that_is_done_keeps_its_attachment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = Driver(monkeypatch, waits=False)
    ours, theirs = os.pipe()
    os.write(theirs, b"d")
    guard.guard(ours, "/dev/nbd7", str(tmp_path / "nbd7.json"), "tag\n", PID)
    os.close(ours)
    os.close(theirs)
    assert driver.ended_by == []
