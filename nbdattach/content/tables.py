# SPDX-License-Identifier: GPL-2.0-or-later
"""Partition tables: their marks, and where the partitions begin.

Sources: UEFI specification 2.10, chapter 5; block/partitions/msdos.c of the kernel.
"""

from __future__ import annotations

import zlib

from nbdattach.content.marks import Mark
from nbdattach.content.reading import Look, Seen

# Entries of a table that are looked at; more are rare, and each costs reads.
MAX_PARTITIONS = 16
_GPT_HEADER = 92
_GPT_ENTRY = 128
_MBR_ENTRY = 16
_MBR_ENTRIES = 446
_PROTECTIVE = 0xEE
_EXTENDED = (0x05, 0x0F, 0x85)
SECTORS = (512, 4096)
GPT_MAGIC = b"EFI PART"  # at the beginning of its header, which is in the second sector


def table(seen: Seen) -> Look[tuple[list[Mark], list[int]]]:
    """The marks of the disk's partition tables, and the offsets in bytes of partitions. The head was read."""
    if seen.at(510, 2) != b"\x55\xaa" or _is_boot_sector(seen):
        return [], []
    for sector in SECTORS:
        if has_gpt(seen, sector):
            return (yield from _gpt(seen, sector))
    return _mbr(seen)


def _is_boot_sector(seen: Seen) -> bool:
    """Whether it belongs to a file system: FAT and NTFS have the same magic number, and no table."""
    return any(seen.at(at, 3) == b"FAT" for at in (54, 82)) or seen.at(3, 8) == b"NTFS    "


def _gpt(seen: Seen, sector: int) -> Look[tuple[list[Mark], list[int]]]:
    entries = seen.number("<Q", sector + 72) * sector
    size = seen.number("<I", sector + 84)
    first, second, third = seen.unpack("<IHH", sector + 56) or (0, 0, 0)
    last = seen.at(sector + 64, 8).hex()
    identity = f"{first:08x}-{second:04x}-{third:04x}-{last[:4]}-{last[4:]}"
    # The checksum of all entries, so that the same disk with other partitions differs.
    mark = Mark("gpt", 0, f"{identity} table {seen.number('<I', sector + 88):08x}")
    if size < _GPT_ENTRY or size > sector or entries >= seen.size:
        return [mark], []
    yield from seen.read([(entries, size * MAX_PARTITIONS)])
    starts = []
    for at in range(entries, entries + size * MAX_PARTITIONS, size):
        if any(seen.at(at, 16)):
            starts.append(seen.number("<Q", at + 32) * sector)
    return [mark], starts


def _mbr(seen: Seen) -> tuple[list[Mark], list[int]]:
    entries = seen.at(_MBR_ENTRIES, 4 * _MBR_ENTRY)
    if len(entries) < 4 * _MBR_ENTRY or not any(entries) or any(entries[at] & 0x7F for at in range(0, 64, _MBR_ENTRY)):
        return [], []
    # Without the flag of the active partition.
    digest = zlib.crc32(b"".join(entries[at + 1 : at + _MBR_ENTRY] for at in range(0, 64, _MBR_ENTRY)))
    mark = Mark("mbr", 0, f"{seen.number('<I', 440):08x} table {digest:08x}")
    return [mark], [start * SECTORS[0] for start in first_blocks(seen)]


def has_gpt(seen: Seen, sector: int) -> bool:
    """Whether the header of a GPT for sectors of that size is there. Its magic was read."""
    return seen.at(sector, len(GPT_MAGIC)) == GPT_MAGIC


def is_protective(seen: Seen) -> bool:
    """Whether the disk's MBR only keeps programs that know no GPT from it."""
    return any(kind == _PROTECTIVE for kind, _ in _mbr_entries(seen))


def first_blocks(seen: Seen) -> list[int]:
    """Where the partitions of the disk's MBR begin, in blocks."""
    return [start for kind, start in _mbr_entries(seen) if kind and kind not in (_PROTECTIVE, *_EXTENDED)]


def _mbr_entries(seen: Seen) -> list[tuple[int, int]]:
    """Type and first block of each; none if the sector belongs to a file system."""
    if _is_boot_sector(seen):
        return []
    places = range(_MBR_ENTRIES, _MBR_ENTRIES + 4 * _MBR_ENTRY, _MBR_ENTRY)
    return [(seen.number("<B", at + 4), seen.number("<I", at + 8)) for at in places]
