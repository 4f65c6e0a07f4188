# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks of images: as QEMU's programs take them, all of them or none. Block devices: `kernel/test_images`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbdattach.own_server.image_lock import all_locked


@pytest.fixture
def images(tmp_path: Path) -> tuple[str, str]:
    for name in ("a.img", "b.img"):
        (tmp_path / name).touch()
    return str(tmp_path / "a.img"), str(tmp_path / "b.img")


def close(files: list[int]) -> None:
    for file in files:
        os.close(file)


@pytest.mark.parametrize(
    ("first", "second", "goes"),
    [("write", "write", False), ("write", "read", False), ("read", "write", False), ("read", "read", True)],
)
def test_one_writer_or_many_readers(images: tuple[str, str], first: str, second: str, goes: bool) -> None:
    path = images[0]
    held = all_locked([(path, first)])
    if goes:
        close(all_locked([(path, second)]))
    else:
        with pytest.raises(OSError, match=r"Failed to get the lock of .*a\.img that QEMU's programs take"):
            all_locked([(path, second)])
    close(held)
    close(all_locked([(path, second)]))


def test_either_all_are_locked_or_none(images: tuple[str, str]) -> None:
    """A keeper that tries again must not take the first for all."""
    first, second = images
    held = all_locked([(second, "write")])
    for _ in range(2):
        with pytest.raises(OSError, match="Failed"):
            all_locked([(first, "write"), (second, "write")])
        close(all_locked([(first, "write")]))
    with pytest.raises(FileNotFoundError):
        all_locked([(first, "write"), (f"{first}.gone", "write")])
    close(held)
    close(all_locked([(first, "write"), (second, "write")]))
