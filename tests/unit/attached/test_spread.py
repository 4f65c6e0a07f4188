# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of a file system that its mount does not name, as /sys and /proc show them."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import pretend

from nbdattach.attached.mounts import Mount
from nbdattach.attached.spread import Spread
from nbdattach.host import procfs
from nbdattach.kernel.sysfs import Block

MOUNT = Mount("/mnt", "8:1", "/dev/sda1", "ext4", None)


@pytest.mark.parametrize("disk", ["nbd0", "dm-0"])
def test_a_journal_on_another_disk_is_seen_also_on_a_mapping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: str
) -> None:
    host, proc = pretend(tmp_path, monkeypatch), tmp_path / "proc"
    monkeypatch.setattr(procfs, "PROC", str(proc))
    for name in (disk, "sda1-8"):
        (proc / "fs/jbd2" / name).mkdir(parents=True)
    (proc / "7").mkdir()
    (proc / "7/comm").write_text(f"jbd2/{disk}\n")
    (host.sys / "fs/ext4/sda1").mkdir(parents=True)
    (host.sys / "fs/ext4/sda1/journal_task").write_text("7\n")
    (host.sys / "block/sda1").mkdir()
    (host.sys / "block/sda1/dev").write_text("8:1\n")
    assert Spread().is_on(MOUNT, Block(disk))
    assert not Spread().is_on(MOUNT, Block("nbd1"))
