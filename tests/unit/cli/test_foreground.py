# SPDX-License-Identifier: GPL-2.0-or-later
"""connect --foreground, where the attachment ends before we watch it."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from nbdattach.cli import foreground
from nbdattach.errors import NoConnection
from nbdattach.kernel.sysfs import Kernel


def test_a_worker_that_has_just_ended_is_an_attachment_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: int) -> NoReturn:
        raise ProcessLookupError

    monkeypatch.setattr(os, "pidfd_open", gone)
    there = SimpleNamespace(pid=4711, backend="ioctl")
    attached = SimpleNamespace(device="/dev/nbd0", pid=4711, status=lambda: there)
    with pytest.raises(NoConnection) as caught:
        foreground.stay(cast("Any", attached), lambda _: None)
    assert str(caught.value).startswith("/dev/nbd0: no longer attached")


def test_a_signal_while_modules_are_loaded_detaches_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(-1)
    done: list[str] = []
    there = SimpleNamespace(pid=4711, backend="netlink")
    attached = SimpleNamespace(
        device="/dev/nbd0", pid=4711, status=lambda: there, disconnect=lambda **_: done.append("detached")
    )
    monkeypatch.setattr(Kernel, "pid", 4711)
    monkeypatch.setattr(foreground.upgrade, "load_all", lambda: os.kill(os.getpid(), signal.SIGTERM))
    signal.signal(signal.SIGTERM, lambda *_: done.append("killed"))
    try:
        foreground.stay(cast("Any", attached), lambda _: None)
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert done == ["detached"]
