# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a device is in use, as the monitor asks while a server may be away."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from host import NBD0, NBD1, Host, pretend

from nbdattach.attached import state, users
from nbdattach.attached.state import Record
from nbdattach.attached.users import is_used, kept_open_by, users_of
from nbdattach.attached.uses import opened
from nbdattach.device import Device
from nbdattach.host import open_files, procfs, targets
from nbdattach.host.procfs import Opener
from nbdattach.host.targets import Target
from nbdattach.kernel import loop, sysfs
from nbdattach.server_of_ours import Image, OwnServer

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


def test_a_disk_that_the_kernel_passes_on_is_used(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """But files that it passes on are not looked at."""
    monkeypatch.setattr(procfs, "mount_table", list)
    paths = ["/mnt/image", "/dev/by/a/name"]
    monkeypatch.setattr(targets, "targets", lambda: [Target(path, "the kernel's NVMe target", "/1") for path in paths])
    assert not is_used(NBD0)
    (host.sys / "block/nbd0/dev").write_text("43:9\n")
    monkeypatch.setattr(sysfs, "loops", dict)
    assert is_used(NBD0)


def test_a_process_with_several_descriptors_is_one_user() -> None:
    found = opened([Opener(7, "fio", 3), Opener(7, "fio", 4), Opener(8, "cat", 3)])
    assert str(found) == "open in process 7 (fio), open in process 8 (cat)"


# -- the order of release, and what no command releases ----------------------------------------------------------------

ROOT = "1 0 8:1 / / rw - ext4 /dev/sda1 rw"


def mounts(monkeypatch: pytest.MonkeyPatch, *lines: str, of: Opener | None = None) -> None:
    """They are those of our namespace, and perhaps of another one, numbers of mounts first."""
    tables = [(None, [*lines])] if of is None else [(None, [ROOT]), (of, [*lines])]
    monkeypatch.setattr(procfs, "mount_tables", lambda: iter(tables))
    monkeypatch.setattr(sysfs, "loops", dict)


def partitioned(host: Host, *names: str) -> None:
    """nbd0 has these partitions, with the numbers 43:1, 43:2, ..."""
    for number, name in enumerate(names, 1):
        for folder in (host.sys / "block/nbd0" / name, host.sys / "block" / name):
            folder.mkdir()
        (host.sys / "block/nbd0" / name / "partition").touch()
        (host.sys / "block" / name / "dev").write_text(f"43:{number}\n")


def lines_of(device: Device = NBD0) -> list[str]:
    return [one.line for one in users_of(device).uses]


def test_what_is_mounted_on_another_mount_is_released_first(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the partitions of one image are, in any order, and bind mounts."""
    partitioned(host, "nbd0p1", "nbd0p2", "nbd0p3")
    (host.sys / "block/nbd0p2/holders/dm-0").mkdir(parents=True)
    (host.sys / "block/dm-0").mkdir()
    (host.sys / "block/dm-0/dev").write_text("252:0\n")
    mounts(
        monkeypatch,
        ROOT,
        "2 1 43:1 / /mnt rw - ext4 /dev/nbd0p1 rw",
        "3 2 252:0 / /mnt/boot rw - ext4 /dev/dm-0 rw",
        "4 3 43:3 / /mnt/boot/efi rw - vfat /dev/nbd0p3 rw",
        "5 2 43:1 /a /mnt/b rw - ext4 /dev/nbd0p1 rw",
    )
    releases = [one.command for one in users_of(NBD0).uses if one.kind == "mount"]
    assert releases == ["umount /mnt/boot/efi", "umount /mnt/b", "umount /mnt/boot", "umount /mnt"]
    assert [one.kind for one in users_of(NBD0).uses] == [*["mount"] * 4, "holder"]
    assert users_of(NBD0).mounts == ["/mnt", "/mnt/b", "/mnt/boot/efi"]


def test_what_is_built_on_two_partitions_is_released_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that carries out the list would get an error from the second command."""
    partitioned(host, "nbd0p1", "nbd0p2")
    for place in ("nbd0p1/holders/md0", "nbd0p2/holders/md0", "nbd0p2/holders/dm-0", "md0/holders/dm-0"):
        (host.sys / "block" / place).mkdir(parents=True)
    (host.sys / "block/dm-0").mkdir()
    mounts(monkeypatch)
    found = users_of(NBD0)
    assert [one.where for one in found.uses] == ["/dev/dm-0", "/dev/md0"]
    assert found.holders == ["dm-0", "md0"]


@pytest.mark.usefixtures("host")
def test_what_is_on_files_of_it_is_released_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop device on a file of it, mounted beside it, with a swap file; and files of other mounts, which stay."""
    mounts(monkeypatch, ROOT, "2 1 43:0 / /mnt rw - ext4 /dev/nbd0 rw", "3 1 7:0 / /a rw - ext4 /dev/loop0 rw")
    monkeypatch.setattr(sysfs, "loops", lambda: {"loop0": "/mnt/image", "loop1": "/image", "loop2": "/mnt/none"})
    monkeypatch.setattr(sysfs.Block, "number", property(lambda one: {"nbd0": "43:0", "loop0": "7:0"}.get(one.name)))
    swaps = ["Filename Type Size Used Priority", *(f"{path} file 9 0 -2" for path in ("/a/swap", "/mnt/b\\040c", "/d"))]
    monkeypatch.setattr(procfs, "lines", lambda name: swaps if name == "swaps" else [])
    monkeypatch.setattr(procfs, "block_number", lambda _: None)
    files = {"loop0": os.makedev(43, 0), "loop1": os.makedev(8, 1), "loop2": os.makedev(8, 1)}
    monkeypatch.setattr(loop, "file_of", lambda name: f"{files[name]}:12")
    assert [one.command for one in users_of(NBD0).uses] == [
        "swapoff /a/swap",
        "umount /a",
        "losetup -d /dev/loop0",
        "swapoff '/mnt/b c'",
        "umount /mnt",
    ]
    assert users_of(NBD0).holders == []


IMAGE = Image("/mnt/a.img", "raw", f"{os.makedev(43, 0)}:12")
RECORD = Record("mine", "nbd+unix:///?socket=/run/s", "", "netlink", 1, "2026-01-02T03:04:05Z", 4711)


def attached_image(image: Image) -> None:
    """At the second device."""
    server = OwnServer(image.path, "/run/nbdattach/servers/1", ("/usr/bin/qemu-nbd", image.path), image=image)
    state.save(NBD1, replace(RECORD, server=server))


ON_THE_FILE_SYSTEM = {
    "the image": IMAGE,
    "a file below the image": replace(IMAGE, identity="1:2", below=("3:4", IMAGE.identity)),
}


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("image", ON_THE_FILE_SYSTEM.values(), ids=ON_THE_FILE_SYSTEM)
def test_a_device_with_its_image_on_a_file_of_it_is_detached_first(
    monkeypatch: pytest.MonkeyPatch, image: Image
) -> None:
    """Its server has the file open, so umount would fail."""
    mounts(monkeypatch, ROOT, "2 1 43:0 / /mnt rw - ext4 /dev/nbd0 rw", "3 1 43:1 / /a rw - ext4 /dev/nbd1 rw")
    assert lines_of() == ["mounted at /mnt: umount /mnt"]
    attached_image(image)
    assert lines_of() == [
        "mounted at /a: umount /a",
        "held by nbd1, with the image /mnt/a.img: nbdattach disconnect /dev/nbd1",
        "mounted at /mnt: umount /mnt",
    ]
    assert (users_of(NBD0).mounts, users_of(NBD0).holders) == (["/mnt"], [])


def test_a_device_with_its_image_on_a_mapping_is_detached_first(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    (host.sys / "block/nbd0/holders/dm-0").mkdir(parents=True)
    (host.sys / "block/dm-0").mkdir()
    (host.sys / "block/dm-0/dev").write_text("252:0\n")
    mounts(monkeypatch)
    attached_image(replace(IMAGE, path="/dev/mapper/volume", identity=f"block:{os.makedev(252, 0)}"))
    assert [one.where for one in users_of(NBD0).uses] == ["/dev/nbd1", "/dev/dm-0"]


OTHERS = "what is mounted on top of it, at {}, has to go first"
COVERED = {
    "at the same place": ("3 2 0:9 / /mnt/a rw - tmpfs tmpfs rw", OTHERS.format("/mnt/a")),
    "above it": ("3 1 0:9 / /mnt rw - tmpfs tmpfs rw", OTHERS.format("/mnt")),
    "on the root": ("3 1 0:9 / / rw - tmpfs tmpfs rw", OTHERS.format("/")),
    "beside it": ("3 1 0:9 / /mn rw - tmpfs tmpfs rw", "umount /mnt/a"),
    "inside it": ("3 2 0:9 / /mnt/a/b rw - tmpfs tmpfs rw", "umount /mnt/a"),
    "of ours at the same place": ("3 2 43:0 / /mnt/a rw - ext4 /dev/nbd0 rw", "umount /mnt/a"),
}


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("where", COVERED)
def test_umount_is_not_told_for_a_path_that_leads_to_another_mount(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    line, way = COVERED[where]
    mounts(monkeypatch, ROOT, "2 1 43:0 / /mnt/a rw - ext4 /dev/nbd0 rw", line)
    assert [one.rpartition(": ")[2] for one in lines_of()] == [way] * (2 if "of ours" in where else 1)


@pytest.mark.usefixtures("host")
def test_a_root_file_system_is_not_unmounted_which_would_make_it_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts(monkeypatch, "1 0 43:0 / / rw - ext4 /dev/nbd0 rw", "2 1 43:0 /x /srv rw - ext4 /dev/nbd0 rw")
    assert lines_of() == ["mounted at /srv: umount /srv", "mounted at /: a root file system cannot be unmounted"]


@pytest.mark.usefixtures("host")
def test_what_is_the_root_of_a_container_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "runs_our_programs", lambda _: False)
    mounts(monkeypatch, "7 0 43:0 / / rw - ext4 /dev/nbd0 rw", of=Opener(4000000, "init"))
    assert [one.release for one in users_of(NBD0).uses] == [("kill", "4000000")]


@pytest.mark.parametrize(
    ("path", "command"),
    [
        (r"/a\040b", "umount '/a b'"),
        (r"/a\011\134n\012b'c", r"umount $'/a\011\\n\012b\'c'"),
        ("/\udcff", r"umount $'/\377'"),
        ("/x" * 150, "umount " + "/x" * 150),
    ],
)
@pytest.mark.usefixtures("host")
def test_a_command_names_the_very_path(monkeypatch: pytest.MonkeyPatch, path: str, command: str) -> None:
    """Whole, and as it is typed: a part of it may be another mount."""
    mounts(monkeypatch, f"36 1 43:0 / {path} rw - ext4 /dev/nbd0 rw")
    (use,) = users_of(NBD0).uses
    assert use.command == command
    typed = subprocess.run(["bash", "-c", f"printf %s {command.partition(' ')[2]}"], stdout=subprocess.PIPE, check=True)
    assert typed.stdout == os.fsencode(use.release[1])


def test_swap_and_btrfs_on_a_mapping_are_known_by_any_name_of_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel shows the name that the caller gave."""
    (host.sys / "block/nbd0/holders/dm-0").mkdir(parents=True)
    (host.sys / "block/dm-0").mkdir()
    (host.sys / "dev/block").mkdir(parents=True)
    (host.sys / "dev/block/252:0").symlink_to("../../block/dm-0")
    monkeypatch.setattr(procfs, "block_number", {"/dev/mapper/group-a b": "252:0"}.get)
    mounts(monkeypatch, r"36 35 0:40 / /mnt rw - btrfs /dev/mapper/group-a\040b rw")
    assert lines_of()[0] == "mounted at /mnt: umount /mnt"
    mounts(monkeypatch)
    swaps = ["Filename Type Size Used Priority", r"/dev/mapper/group-a\040b partition 4 0 -2"]
    monkeypatch.setattr(procfs, "lines", lambda name: swaps if name == "swaps" else [])
    assert lines_of()[0] == "dm-0 swapped on: swapoff /dev/dm-0"


@pytest.mark.usefixtures("host")
def test_a_probe_that_ends_is_no_user_however_long_the_look_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds beside processes that have locked their memory."""

    def openers(*_: object) -> list[Opener]:
        time.sleep(0.3)
        return [Opener(4711, "blkid", 3)]

    monkeypatch.setattr(users, "A_LOOK", 0.2)
    monkeypatch.setattr(open_files, "openers", openers)
    monkeypatch.setattr(open_files, "still_open", lambda *_: False)
    assert kept_open_by(NBD0) == []
