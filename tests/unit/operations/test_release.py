# SPDX-License-Identifier: GPL-2.0-or-later
"""A command that releases a device may fail for a moment. The commands themselves are tested in guests."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from nbdattach.attached import state
from nbdattach.attached.uses import Use
from nbdattach.device import Device
from nbdattach.errors import DeviceInUse
from nbdattach.host import programs
from nbdattach.operations import release
from nbdattach.own_server import installed
from nbdattach.reporter import QUIET

NBD0 = Device(0)
MOUNT = Use("mount", "/mnt", "mounted at /mnt", ("umount", "/mnt"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], list[str]]:
    """Releases a mount; its command ends with these exit codes, the last one again and again."""

    def run(codes: list[int]) -> list[str]:
        ran: list[str] = []

        def umount(*words: str) -> SimpleNamespace:
            ran.append(" ".join(words))
            return SimpleNamespace(returncode=codes[min(len(ran), len(codes)) - 1], stderr="target is busy", stdout="")

        def users(_: Device) -> SimpleNamespace:
            released = ran and codes[min(len(ran), len(codes)) - 1] == 0
            return SimpleNamespace(uses=[] if released else [MOUNT], all=[])

        monkeypatch.setattr(release, "users_of", users)
        monkeypatch.setattr(release, "open_by", lambda _: [])
        monkeypatch.setattr(release, "_users", users)
        monkeypatch.setattr(state, "identity_of", lambda _: "the same")
        monkeypatch.setattr(installed, "required", lambda program, _: program)
        monkeypatch.setattr(programs, "run", umount)
        release.release(NBD0, QUIET, lambda _: None)
        return ran

    return run


def test_a_mount_that_is_busy_for_a_moment_is_released(run: Callable[[list[int]], list[str]]) -> None:
    """As after the end of a server that had a file on it: the kernel may close that a little later."""
    assert run([32, 32, 0]) == ["umount /mnt"] * 3


def test_one_that_stays_busy_is_told_with_the_words_of_its_command(
    run: Callable[[list[int]], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "_GOES_WITHIN", 0.1)
    with pytest.raises(DeviceInUse, match=r"umount /mnt failed: .target is busy"):
        run([32])
