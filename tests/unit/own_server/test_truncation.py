# SPDX-License-Identifier: GPL-2.0-or-later
"""A qcow2 image that has lost its end is noticed by a few reads; a whole one never seems cut off."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from nbdattach.own_server.truncation import seems_cut_off


def qcow2(folder: Path, clusters: int, bits: int = 16, order: int = 4, version: int = 3) -> Path:
    """An image whose last cluster in use is the one before `clusters`; one refcount block is enough."""
    size = 1 << bits
    head = bytearray(size)
    head[:8] = b"QFI\xfb" + struct.pack(">I", version)
    struct.pack_into(">I", head, 20, bits)
    struct.pack_into(">QI", head, 48, size, 1)
    struct.pack_into(">I", head, 96, order)
    table = bytearray(size)
    struct.pack_into(">Q", table, 0, 2 * size)
    block = bytearray(size)
    width = 1 << order
    for number in range(clusters):
        if width < 8:
            block[number * width // 8] |= 1 << (number * width % 8)
        else:
            end = (number + 1) * width // 8
            block[end - 1] = 1
    path = folder / "disk.qcow2"
    with path.open("wb") as file:
        file.write(head + table + block)
        file.truncate(clusters * size)
    return path


@pytest.mark.parametrize("bits", [9, 12, 16, 21])
@pytest.mark.parametrize("order", [0, 3, 4, 6])
def test_a_whole_image_does_not_seem_cut_off(tmp_path: Path, bits: int, order: int) -> None:
    path = qcow2(tmp_path, 40, bits, order)
    assert not seems_cut_off(path=str(path))
    with path.open("r+b") as file:
        file.truncate((39 << bits) + 1)  # the last cluster need not be there as a whole
    assert not seems_cut_off(str(path))


@pytest.mark.parametrize("bits", [9, 12, 16, 21])
@pytest.mark.parametrize("order", [3, 4, 6])
def test_a_cluster_in_use_behind_the_end_is_noticed(tmp_path: Path, bits: int, order: int) -> None:
    path = qcow2(tmp_path, 40, bits, order)
    for length in (39 << bits, 20 << bits, 3 << bits, 2 << bits, 1 << bits, 100):
        with path.open("r+b") as file:
            file.truncate(length)
        assert seems_cut_off(str(path)), length


def test_an_image_of_version_2_has_16_bits_a_cluster(tmp_path: Path) -> None:
    path = qcow2(tmp_path, 40, version=2)
    with path.open("r+b") as file:
        file.seek(96)
        file.write(b"\xff" * 8)  # of version 3 only
    assert not seems_cut_off(str(path))
    with path.open("r+b") as file:
        file.truncate(30 << 16)
    assert seems_cut_off(str(path))


def test_a_header_that_qemu_refuses_is_left_to_qemu(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(b"QFI\xfb\0\0\0\3" + b"\xff" * 500)
    assert not seems_cut_off(str(path))
