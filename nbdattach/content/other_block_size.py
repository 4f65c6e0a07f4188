# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a partition table was made for another block size than the disk has now: then partitions are in wrong places.

A table counts in blocks. A GPT shows its block size by the place of its header. An MBR does not; but if there is a file
system where one of its partitions would begin with the other size, and none where the kernel puts them, it is for that.
"""

from __future__ import annotations

from nbdattach.content import signatures, tables
from nbdattach.content.reading import Look, Seen


def look(size: int, block: int) -> Look[int | None]:
    """The block size of the table in bytes; None if there is no table, or none for another size."""
    seen = Seen(size, block)
    yield from seen.read([(0, block)])
    if seen.at(510, 2) != b"\x55\xaa":
        return None
    if tables.is_protective(seen):
        return (yield from _of_gpt(seen, block))
    return (yield from _of_mbr(seen, block))


def _of_gpt(seen: Seen, block: int) -> Look[int | None]:
    for sector in (block, *tables.SECTORS):
        yield from seen.read([(sector, len(tables.GPT_MAGIC))])
        if tables.has_gpt(seen, sector):
            return None if sector == block else sector
    return None


def _of_mbr(seen: Seen, block: int) -> Look[int | None]:
    starts = [start for start in tables.first_blocks(seen) if start]
    for size in (block, *tables.SECTORS):
        for start in starts:
            if (yield from _is_volume(seen, start * size)):
                return None if size == block else size
    return None


def _is_volume(seen: Seen, base: int) -> Look[bool]:
    yield from seen.read(signatures.head_of(base))
    return bool((yield from signatures.marks_at(seen, base)))
