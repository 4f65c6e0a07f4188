# SPDX-License-Identifier: GPL-2.0-or-later
"""A partition table for another block size than the device has is recognised; any other table is not taken for one."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from looking import run

from nbdattach.content import other_block_size

SIZE = 32 << 20
MIB = 1 << 20


def found(disk: bytes, block: int) -> int | None:
    return run(other_block_size.look(len(disk), block), disk)


def gpt(sector: int) -> bytes:
    """A protective MBR, and a header in the second block."""
    disk = bytearray(SIZE)
    disk[446:462] = struct.pack("<BBBBBBBBII", 0, 0, 2, 0, 0xEE, 255, 255, 255, 1, SIZE // sector - 1)
    disk[510:512] = b"\x55\xaa"
    disk[sector : sector + 8] = b"EFI PART"
    return bytes(disk)


def mbr(sector: int, place: int = MIB, content: str = "ext4") -> bytes:
    """One partition that begins there, with a file system."""
    disk = bytearray(SIZE)
    disk[446:462] = struct.pack("<BBBBBBBBII", 0x80, 0, 2, 0, 0x83, 255, 255, 255, place // sector, 4096)
    disk[510:512] = b"\x55\xaa"
    if content == "ext4":
        disk[place + 1024 + 56 : place + 1024 + 58] = b"\x53\xef"
    return bytes(disk)


@pytest.mark.parametrize("made", [gpt, mbr])
@pytest.mark.parametrize(("sector", "block"), [(512, 4096), (4096, 512), (512, 1024), (4096, 2048)])
def test_a_table_for_another_size_is_recognised(made: object, sector: int, block: int) -> None:
    assert found(made(sector), block) == sector  # type: ignore[operator]


@pytest.mark.parametrize("made", [gpt, mbr])
@pytest.mark.parametrize("block", [512, 4096])
def test_a_table_for_the_same_size_is_not(made: object, block: int) -> None:
    assert found(made(block), block) is None  # type: ignore[operator]


@pytest.mark.parametrize("block", [512, 4096])
@pytest.mark.parametrize(
    "disk",
    [bytes(SIZE), bytes(512), mbr(512, content=""), mbr(512, place=0, content=""), b"\xff" * SIZE, b"\x55\xaa" * 4096],
    ids=["zeroes", "tiny", "no file system", "at 0", "ones", "noise"],
)
def test_what_tells_nothing_is_not(disk: bytes, block: int) -> None:
    assert found(disk, block) is None


def second(disk: bytes, sector: int, place: int) -> bytes:
    """Another partition that begins there, with a file system."""
    made = bytearray(disk)
    made[462:478] = struct.pack("<BBBBBBBBII", 0, 0, 2, 0, 0x83, 255, 255, 255, place // sector, 4096)
    made[place + 1024 + 56 : place + 1024 + 58] = b"\x53\xef"
    return bytes(made)


def test_each_partition_of_an_mbr_may_tell() -> None:
    """The first one may have no file system yet; and a file system that was there before tells nothing."""
    empty = mbr(512, content="")
    assert (found(second(empty, 512, 2 * MIB), 4096), found(second(empty, 512, 2 * MIB), 512)) == (512, None)
    old = bytearray(second(mbr(4096, 16 * MIB, content=""), 4096, 24 * MIB))
    old[2 * MIB + 1024 + 56 : 2 * MIB + 1024 + 58] = b"\x53\xef"  # where the first one is in blocks of 512
    assert found(bytes(old), 4096) is None


@pytest.mark.parametrize(("label", "type_"), [("gpt", "linux"), ("dos", "83")])
def test_tables_that_sfdisk_has_made_are_for_512(tmp_path: Path, label: str, type_: str) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    script = f"label: {label}\nsize=8MiB, type={type_}\n"
    subprocess.run(["/sbin/sfdisk", "-q", str(image)], input=script, text=True, check=True)
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-E", f"offset={MIB}", str(image), "8M"], check=True)
    disk = image.read_bytes()
    assert (found(disk, 512), found(disk, 4096)) == (None, 512)
