# SPDX-License-Identifier: GPL-2.0-or-later
"""A /run and a /sys of our own, for `state` and `sysfs` to take for the machine's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbdattach.attached import state
from nbdattach.device import Device
from nbdattach.kernel import sysfs

NBD0, NBD1 = Device(0), Device(1)


class Host:
    """The kernel's view of its devices, and the files in /run/nbdattach."""

    def __init__(self, root: Path) -> None:
        self.run = root / "run"
        self.sys = root / "sys"
        (self.sys / "block").mkdir(parents=True)
        (self.sys / "class").mkdir()
        (self.sys / "class/block").symlink_to(self.sys / "block")

    def attach(self, device: Device = NBD0, pid: int = 4711, netlink: bool = True, tag: str = "mine") -> None:
        """The kernel says that this process has attached it, 1 MiB; by netlink with that identifier."""
        folder = self.sys / "block" / device.name
        folder.mkdir()
        (folder / "pid").write_text(f"{pid}\n")
        (folder / "size").write_text("2048\n")
        if netlink:
            (folder / "backend").write_text(f"{tag}\n")

    def write(self, name: str, text: str) -> None:
        self.run.mkdir(exist_ok=True)
        (self.run / name).write_text(text)

    @property
    def files(self) -> list[str]:
        return sorted(os.listdir(self.run)) if self.run.exists() else []


def pretend(root: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(root)
    monkeypatch.setattr(state, "RUN", str(made.run))
    monkeypatch.setattr(sysfs, "SYS", str(made.sys))
    return made
