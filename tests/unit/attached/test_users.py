# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a device is in use, as the monitor asks while a server may be away."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
from host import NBD0, NBD1, Host, pretend

from nbdattach.attached.users import is_used, opened
from nbdattach.host import procfs
from nbdattach.host.procfs import Opener
from nbdattach.kernel import sysfs

MOUNT = "36 35 43:0 / /mnt rw,noatime master:1 - ext4 /dev/nbd0 rw"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = pretend(tmp_path, monkeypatch)
    for index, device in enumerate((NBD0, NBD1)):
        made.attach(device)
        (made.sys / "block" / device.name / "dev").write_text(f"43:{index}\n")

    def waits(*_: object) -> NoReturn:
        raise AssertionError("it may wait for a server")

    monkeypatch.setattr(sysfs, "loops", lambda: {"loop0": "/mnt/image", "loop1": "/dev/by/a/name"})
    monkeypatch.setattr(procfs, "mount_tables", waits)
    monkeypatch.setattr(procfs, "block_number", lambda path: "43:9" if path.startswith("/dev/") else waits())
    return made


def test_it_is_seen_without_a_look_at_any_disk(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "mount_table", lambda: [MOUNT])
    assert (is_used(NBD0), is_used(NBD1)) == (True, False)


def test_a_device_that_is_built_on_it_uses_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "mount_table", list)
    assert not is_used(NBD1)
    (host.sys / "block/nbd1/holders/dm-0").mkdir(parents=True)
    (host.sys / "block/dm-0").mkdir()
    assert is_used(NBD1)


def test_a_loop_device_uses_it_by_any_name(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """But the files of other loop devices are not looked at: they may be on a disk that is away."""
    monkeypatch.setattr(procfs, "mount_table", list)
    (host.sys / "block/loop1").mkdir()
    assert not is_used(NBD0)
    (host.sys / "block/nbd0/dev").write_text("43:9\n")
    assert is_used(NBD0)


def test_a_process_with_several_descriptors_is_one_user() -> None:
    found = opened([Opener(7, "fio", 3), Opener(7, "fio", 4), Opener(8, "cat", 3)])
    assert str(found) == "open in process 7 (fio), open in process 8 (cat)"
