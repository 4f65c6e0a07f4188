# SPDX-License-Identifier: GPL-2.0-or-later
"""connect --foreground, where the attachment ends before we watch it."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from nbdattach.cli import foreground
from nbdattach.errors import NoConnection


def test_a_worker_that_has_just_ended_is_an_attachment_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: int) -> NoReturn:
        raise ProcessLookupError

    monkeypatch.setattr(os, "pidfd_open", gone)
    there = SimpleNamespace(pid=4711, backend="ioctl")
    attached = SimpleNamespace(device="/dev/nbd0", pid=4711, status=lambda: there)
    with pytest.raises(NoConnection) as caught:
        foreground.stay(cast("Any", attached), lambda _: None)
    assert str(caught.value).startswith("/dev/nbd0: no longer attached")
