# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that the kernel passes on, in a configfs of the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbdattach.host import procfs, targets

FILEIO = """Status: ACTIVATED  Max Queue Depth: 0  SectorSize: 512  HwMaxSectors: 16384
        TCM FILEIO ID: 0        File: /dev/a disk  Size: 67108864  Mode: O_DSYNC Async: 0
"""
IBLOCK = """Status: ACTIVATED  Max Queue Depth: 0  SectorSize: 512  HwMaxSectors: 65536
        iBlock device: nbd0  UDEV PATH: /dev/disk/by-label/DATA  readonly: 0
        Major: 43 Minor: 0  CLAIMED: IBLOCK
"""
SETTINGS = {
    "target/core/fileio_1/other/info": FILEIO,
    "target/core/iblock_0/disk/info": IBLOCK,
    "target/core/alua/lu_gps/default_lu_gp": "",
    "target/core/fileio_1/other/enable": "1\n",
    "target/core/iblock_0/not yet/info": IBLOCK,
    "target/core/iblock_0/not yet/enable": "0\n",
    "nvmet/subsystems/name/namespaces/1/device_path": "/dev/nbd2\n",
    "nvmet/subsystems/name/namespaces/3/device_path": "/dev/nbd2\n",
    "nvmet/subsystems/name/namespaces/3/enable": "0\n",
    "nvmet/subsystems/name/namespaces/2/device_path": "\n",
    "usb_gadget/g1/functions/mass_storage.0/lun.0/file": "/dev/nbd3\n",
}


@pytest.fixture
def configfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in SETTINGS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(targets, "CONFIGFS", str(tmp_path))
    return tmp_path


def test_each_kind_names_its_disk_once_it_is_open(configfs: Path) -> None:
    assert {(one.path, one.by, one.place) for one in targets.targets()} == {
        ("/dev/a disk", "the kernel's SCSI target", f"{configfs}/target/core/fileio_1/other"),
        ("/dev/disk/by-label/DATA", "the kernel's SCSI target", f"{configfs}/target/core/iblock_0/disk"),
        ("/dev/nbd2", "the kernel's NVMe target", f"{configfs}/nvmet/subsystems/name/namespaces/1"),
        ("/dev/nbd3", "the kernel's USB storage", f"{configfs}/usb_gadget/g1/functions/mass_storage.0/lun.0"),
    }


def test_only_block_devices_have_a_number(configfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "block_number", {"/dev/nbd2": "43:32"}.get)
    assert {number: [one.path for one in found] for number, found in targets.by_number().items()} == {
        "43:0": ["/dev/disk/by-label/DATA"],
        "43:32": ["/dev/nbd2"],
    }


def test_a_disk_whose_number_the_kernel_tells_is_not_looked_for(
    configfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label may be that of another disk by now."""
    monkeypatch.setattr(procfs, "block_number", {"/dev/disk/by-label/DATA": "43:96", "/dev/nbd2": "43:32"}.get)
    assert {*targets.by_number()} == {"43:0", "43:32"}


def test_a_host_without_any_is_asked_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "CONFIGFS", str(tmp_path))
    assert targets.by_number() == {}
