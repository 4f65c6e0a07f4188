# SPDX-License-Identifier: GPL-2.0-or-later
"""Recognises what a volume (a disk or a partition) holds, from the first bytes of it and a few more.

Sources: the kernel's fs/ext4/ext4.h, fs/xfs/libxfs/xfs_format.h, include/uapi/linux/btrfs_tree.h, raid/md_p.h, swap.h;
LUKS2 on-disk format 1.0, section 2; lvm2's lib/format_text/layout.h.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from nbdattach.content.marks import Mark
from nbdattach.content.reading import Look, Range, Seen
from nbdattach.text import uuid_text

# Read of each volume: all that is at its beginning, and the superblock of btrfs; bytes.
_HEAD = 4608
_BTRFS = 64 << 10
_BTRFS_LENGTH = 512
_SECTOR = 512
# The label of LVM is in one of so many sectors.
_LABEL_SECTORS = 4
# Enough of LVM's text to see its number.
_TEXT = 1024
_EXT = 1024
_MD_MAGIC = 0xA92B4EFC
# Where swap's magic is: at the end of a page, which has one of these sizes.
_PAGES = (4096,)


def head_of(base: int) -> list[Range]:
    """What to read of the volume that begins there."""
    return [(base, _HEAD), (base + _BTRFS, _BTRFS_LENGTH)]


def tail_of(size: int) -> list[Range]:
    """What to read at the end of the whole disk: superblocks of md of the formats 1.0 and 0.90."""
    return [(place, _SECTOR) for place in (_md_1_0(size), _md_0_90(size)) if place > 0]


def marks_at(seen: Seen, base: int) -> Look[list[Mark]]:
    """The marks of the volume that begins there and whose head was read."""
    found = [mark for recognise in _RECOGNISED for mark in [recognise(seen, base)] if mark]
    if base == 0:
        found += _md_at_the_end(seen)
    label = _lvm_label(seen, base)
    if label is not None:
        found.append((yield from _lvm(seen, base, label)))
    return found


def _text(data: bytes) -> str:
    return re.sub(r"[^0-9A-Za-z-]", "?", data.rstrip(b"\0").decode("ascii", "replace"))


def _ext(seen: Seen, base: int) -> Mark | None:
    at = base + _EXT
    if seen.number("<H", at + 56) != 0xEF53:
        return None
    grows = {"kbytes written": written} if (written := seen.number("<Q", at + 376)) else {}
    return Mark("ext4", base, uuid_text(seen.at(at + 104, 16)), grows)


def _xfs(seen: Seen, base: int) -> Mark | None:
    return Mark("xfs", base, uuid_text(seen.at(base + 32, 16))) if seen.at(base, 4) == b"XFSB" else None


def _btrfs(seen: Seen, base: int) -> Mark | None:
    at = base + _BTRFS
    if seen.at(at + 64, 8) != b"_BHRfS_M":
        return None
    # One file system may have many devices.
    identity = f"{uuid_text(seen.at(at + 32, 16))} device {uuid_text(seen.at(at + 267, 16))}"
    return Mark("btrfs", base, identity, {"generation": seen.number("<Q", at + 72)})


def _luks(seen: Seen, base: int) -> Mark | None:
    if seen.at(base, 6) != b"LUKS\xba\xbe":
        return None
    second = seen.number(">H", base + 6) == 2
    grows = {"sequence": seen.number(">Q", base + 16)} if second else {}
    return Mark("luks", base, _text(seen.at(base + 168, 40)), grows)


def _swap(seen: Seen, base: int) -> Mark | None:
    for page in _PAGES:
        # A suspended system is in the swap space: it is the same one.
        if seen.at(base + page - 10, 10) in (b"SWAPSPACE2", b"S1SUSPEND\0", b"S2SUSPEND\0"):
            return Mark("swap", base, uuid_text(seen.at(base + 1036, 16)))
    return None


def _vfat(seen: Seen, base: int) -> Mark | None:
    for kind, number in ((82, 67), (54, 39)):
        if seen.at(base + kind, 3) == b"FAT" and seen.at(base + 510, 2) == b"\x55\xaa":
            return Mark("vfat", base, f"{seen.number('<I', base + number):08x}")
    return None


def _ntfs(seen: Seen, base: int) -> Mark | None:
    found = seen.at(base + 3, 8) == b"NTFS    "
    return Mark("ntfs", base, f"{seen.number('<Q', base + 72):016x}") if found else None


def _f2fs(seen: Seen, base: int) -> Mark | None:
    found = seen.number("<I", base + 1024) == 0xF2F52010
    return Mark("f2fs", base, uuid_text(seen.at(base + 1024 + 108, 16))) if found else None


def _gfs2(seen: Seen, base: int) -> Mark | None:
    at = base + (64 << 10)
    found = seen.number(">I", at) == 0x01161970
    return Mark("gfs2", base, uuid_text(seen.at(at + 256, 16))) if found else None


def _md(seen: Seen, base: int) -> Mark | None:
    for at in (base + 4096, base):  # formats 1.2 and 1.1
        if mark := _md_1(seen, base, at):
            return mark
    return None


def _md_1(seen: Seen, base: int, at: int) -> Mark | None:
    if seen.unpack("<II", at) != (_MD_MAGIC, 1):
        return None
    identity = f"{uuid_text(seen.at(at + 16, 16))} device {uuid_text(seen.at(at + 168, 16))}"
    return Mark("md", base, identity, {"events": seen.number("<Q", at + 200)})


def _md_1_0(size: int) -> int:
    return ((size // _SECTOR - 16) & ~7) * _SECTOR


def _md_0_90(size: int) -> int:
    return (size & ~0xFFFF) - 0x10000


def _md_at_the_end(seen: Seen) -> Iterator[Mark]:
    mark = _md_1(seen, _md_1_0(seen.size), _md_1_0(seen.size))
    if mark:
        yield mark
    at = _md_0_90(seen.size)
    if at > 0 and seen.unpack("<II", at) == (_MD_MAGIC, 0):
        words = [seen.number("<I", at + place) for place in (20, 52, 56, 60)]
        yield Mark("md", at, ":".join(f"{word:08x}" for word in words))


def _lvm_label(seen: Seen, base: int) -> int | None:
    """Where the label's header of the volume points to."""
    for sector in range(_LABEL_SECTORS):
        at = base + sector * _SECTOR
        if seen.at(at, 8) == b"LABELONE" and seen.at(at + 24, 8) == b"LVM2 001":
            return at + seen.number("<I", at + 20)
    return None


def _lvm(seen: Seen, base: int, header: int) -> Look[Mark]:
    grows: dict[str, int] = {}
    area = _lvm_area(seen, header + 40)
    if area:
        start, size = base + area[0], area[1]
        yield from seen.read([(start, _SECTOR)])
        offset, length = seen.unpack("<QQ", start + 40) or (0, 0)
        if 0 < offset < size and length:
            yield from seen.read([(start + offset, _TEXT)])
            text = re.search(rb"\n\s*seqno = (\d{1,18})\n", seen.at(start + offset, _TEXT))
            grows = {"seqno": int(text[1])} if text else {}
    return Mark("lvm", base, _text(seen.at(header, 32)), grows)


def _lvm_area(seen: Seen, at: int) -> Range | None:
    """The first area of metadata: it follows the list of data areas, which ends with an empty one."""
    for _ in range(8):
        if seen.unpack("<QQ", at) == (0, 0):
            area = seen.unpack("<QQ", at + 16)
            return (area[0], area[1]) if area and area[1] else None
        at += 16
    return None


_RECOGNISED: tuple[Callable[[Seen, int], Mark | None], ...] = (
    _ext,
    _xfs,
    _btrfs,
    _luks,
    _swap,
    _vfat,
    _ntfs,
    _f2fs,
    _gfs2,
    _md,
)
