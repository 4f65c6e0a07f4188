# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of a mounted file system that have become loop devices or swap: which mount they are on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbdattach.attached import on_files
from nbdattach.attached.mounts import parsed
from nbdattach.attached.on_files import OnFiles, has_one, on_files_of
from nbdattach.host.bare_files import identity
from nbdattach.kernel import loop

LINES = (
    "1 0 8:1 / / rw - ext4 /dev/sda1 rw",
    "2 1 43:0 / /mnt rw - ext4 /dev/nbd0 rw",
    "3 2 43:32 / /mnt/inner rw - ext4 /dev/nbd1 rw",
    "4 2 43:64 / /mnt/inner rw - ext4 /dev/nbd2 rw",
)
MOUNTS = [parsed(line, None) for line in LINES]


def by_mount(loops: dict[str, str], swaps: list[str]) -> dict[str, OnFiles]:
    """All that is on files of mounts, by the id of the mount."""
    found = {one.id: on_files_of(one, MOUNTS, loops, swaps) for one in MOUNTS}
    return {name: one for name, one in found.items() if one != OnFiles([], [])}


@pytest.mark.parametrize(
    ("path", "id"),
    [
        ("/mnt/swap", "2"),
        ("/mnt/innermost", "2"),
        ("/mnt/inner/a b", "4"),
        ("/mntx", "1"),
        ("/mnt", "1"),
        ("(unreachable)/mnt/swap", ""),
    ],
)
def test_a_swap_file_is_on_the_mount_that_shows_its_path(path: str, id: str) -> None:
    assert by_mount({}, [path]) == ({id: OnFiles([], [path])} if id else {})


@pytest.mark.parametrize(
    ("identity", "found"),
    [
        (f"{os.makedev(43, 0)}:12", {"2": OnFiles(["loop0"], [])}),
        (f"{os.makedev(8, 1)}:12", {}),  # of another mount namespace, which has the same path
        ("block:99", {}),
        ("", {}),  # nobody may ask but root
    ],
)
def test_the_number_of_its_file_system_decides_about_a_loop_device(
    monkeypatch: pytest.MonkeyPatch, identity: str, found: dict[str, OnFiles]
) -> None:
    monkeypatch.setattr(loop, "file_of", lambda _: identity)
    assert by_mount({"loop0": "/mnt/image (deleted)"}, []) == found


def test_loop_devices_on_other_mounts_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question takes a process, and a host may have dozens of them."""
    asked: list[str] = []

    def ask(name: str, *_: object) -> bool:
        asked.append(name)
        return False

    monkeypatch.setattr(on_files, "_is_on", ask)
    loops = {f"loop{number}": f"/snap/{number}" for number in range(40)} | {"loop40": "/mnt/image"}
    assert on_files_of(MOUNTS[1], MOUNTS, loops, []) == OnFiles([], [])
    assert asked == ["loop40"]


@pytest.mark.parametrize(("there", "found"), [("12", ["loop0"]), ("13", []), (None, [])])
def test_a_file_of_btrfs_is_on_the_mount_that_shows_it(
    monkeypatch: pytest.MonkeyPatch, there: str | None, found: list[str]
) -> None:
    """It has the number of a subvolume. Another file may have its name here; and a dead disk gives no answer."""
    mounted = parsed("2 1 0:50 / /mnt rw - btrfs /dev/nbd0 rw", None)
    monkeypatch.setattr(loop, "file_of", lambda _: "57:12")
    monkeypatch.setattr(on_files, "_identity", lambda *_: f"57:{there}" if there else "")
    assert on_files_of(mounted, [MOUNTS[0], mounted], {"loop0": "/mnt/image"}, []) == OnFiles(found, [])


@pytest.mark.parametrize(("named", "found"), [("mnt/link", False), ("disks/image", True)])
def test_a_link_on_btrfs_to_a_file_elsewhere_is_no_file_of_it(tmp_path: Path, named: str, found: bool) -> None:
    """As the backing file of an image may be: the device would be detached without need."""
    for name in ("mnt", "disks"):
        (tmp_path / name).mkdir()
    (tmp_path / "disks/image").touch()
    (tmp_path / "mnt/link").symlink_to("../disks/image")
    mounts = [parsed(f"2 1 0:50 / {tmp_path}/{name} rw - btrfs /dev/nbd0 rw", None) for name in ("mnt", "disks")]
    mount = mounts[named == "disks/image"]
    path = f"{tmp_path}/{named}"
    assert has_one(mount, mounts, [identity(os.stat(path))], [path]) == found
