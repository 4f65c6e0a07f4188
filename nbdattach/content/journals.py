# SPDX-License-Identifier: GPL-2.0-or-later
"""Journals of ext4 and XFS: how far they have come, which tells an older snapshot even of a mounted file system.

ext4 (fs/jbd2): each block that is no data begins with a magic number and the sequence number of its transaction; data
that begins so is stored otherwise. The journal's own superblock names the oldest transaction that may be needed, and is
written before the space of an older one is used again. So the witness is there, or the superblock has passed it.
XFS (fs/xfs/xfs_log.c): each sector of the log has the number of the cycle in which it was written last.
"""

from __future__ import annotations

import dataclasses
import struct

from nbdattach.content.marks import Mark, Witness
from nbdattach.content.reading import Look, Seen

# The sequence number of ext4's journal; it is counted modulo 2^32.
JOURNAL = "journal"
_EXT = 1024
_HAS_JOURNAL = 0x4
_BACKUP_OF_BLOCKS = 1
_EXTENT_MAGIC = 0xF30A
_JBD2_MAGIC = 0xC03B3998
_JBD2_SUPERBLOCKS = (3, 4)
# Blocks of a journal that are read at once, and how often, to find its latest one.
_CHUNK = 16
_CHUNKS = 8
_XLOG_MAGIC = 0xFEEDBABE
_XFS_SECTOR = 512


def followed(seen: Seen, mark: Mark, known: Witness | None, check: bool) -> Look[Mark]:
    """The mark with what its journal tells; with `check`, only what is at the witness that is `known`."""
    if mark.kind == "ext4":
        return (yield from _ext4(seen, mark, known, check))
    if mark.kind == "xfs":
        return (yield from _xfs(seen, mark, known, check))
    return mark


# -- ext4 ----------------------------------------------------------------------------------------------------------


def _ext4(seen: Seen, mark: Mark, known: Witness | None, check: bool) -> Look[Mark]:
    at = mark.at + _EXT
    if not seen.number("<I", at + 92) & _HAS_JOURNAL or seen.number("<B", at + 253) != _BACKUP_OF_BLOCKS:
        return mark
    block = 1024 << min(seen.number("<I", at + 24), 6)
    extent = _first_extent(seen, at + 268)
    if not extent:
        return mark
    journal, length = mark.at + extent[0] * block, extent[1]
    yield from seen.read([(journal, 1024)])
    magic, kind = seen.unpack(">II", journal) or (0, 0)
    if magic != _JBD2_MAGIC or kind not in _JBD2_SUPERBLOCKS or seen.number(">I", journal + 12) != block:
        return mark
    first, sequence, start = seen.unpack(">III", journal + 20) or (0, 0, 0)
    grows = {**mark.grows, JOURNAL: sequence}
    if check:
        witness = None
        if known:
            yield from seen.read([(known.at, 12)])
            witness = Witness(known.at, _sequence(seen, known.at))
        return dataclasses.replace(mark, grows=grows, witness=witness)
    place = known.at if known and known.sequence and not is_past(sequence, known.sequence) else journal + start * block
    if not start or not first <= start < length or not journal < place < journal + length * block:
        return dataclasses.replace(mark, grows=grows)
    witness = yield from _latest(seen, place, block, (journal + first * block, journal + length * block))
    return dataclasses.replace(mark, grows=grows, witness=witness)


def _first_extent(seen: Seen, at: int) -> tuple[int, int] | None:
    """The first block on the disk of the journal's inode, and how many follow; None if it is stored otherwise."""
    magic, entries, _, depth = seen.unpack("<HHHH", at) or (0, 0, 0, 0)
    if magic != _EXTENT_MAGIC or not entries or depth:
        return None
    _, length, high, low = seen.unpack("<IHHI", at + 12) or (0, 0, 0, 0)
    return high << 32 | low, length


def _latest(seen: Seen, place: int, block: int, area: tuple[int, int]) -> Look[Witness | None]:
    """The block of the latest transaction that can be found from `place` on."""
    best: Witness | None = None
    for _ in range(_CHUNKS):
        span = min(_CHUNK, (area[1] - place) // block)
        yield from seen.read([(place, span * block)])
        before = best
        for at in range(place, place + span * block, block):
            sequence = _sequence(seen, at)
            if sequence and (best is None or not is_past(best.sequence, sequence)):
                best = Witness(at, sequence)
        place += span * block
        if place >= area[1]:
            place = area[0]
        if best == before:
            break
    return best


def _sequence(seen: Seen, at: int) -> int:
    magic, _, sequence = seen.unpack(">III", at) or (0, 0, 0)
    return sequence if magic == _JBD2_MAGIC else 0


def is_past(sequence: int, other: int) -> bool:
    """Whether the one is later than the other, modulo 2^32."""
    return 0 < (sequence - other) % (1 << 32) < 1 << 31


# -- XFS -----------------------------------------------------------------------------------------------------------


def _xfs(seen: Seen, mark: Mark, known: Witness | None, check: bool) -> Look[Mark]:
    base = mark.at
    block, start = seen.number(">I", base + 4), seen.number(">Q", base + 48)
    group, length, shift = seen.number(">I", base + 84), seen.number(">I", base + 96), seen.number("<B", base + 124)
    if not (start and block and length and shift < 64):  # no start: the log is on another device
        return mark
    log = base + ((start >> shift) * group + (start & ((1 << shift) - 1))) * block
    sectors = length * block // _XFS_SECTOR
    if check:
        if known is None:
            return mark
        yield from seen.read([(known.at, 8)])
        return dataclasses.replace(mark, witness=Witness(known.at, _cycle(seen, known.at)))
    # The cycle decreases once, at the head of the log. As the kernel does, we find that place by halves.
    yield from seen.read([(log, 8)])
    cycle, low, high = _cycle(seen, log), 0, sectors
    while high - low > 1:
        middle = (low + high) // 2
        yield from seen.read([(log + middle * _XFS_SECTOR, 8)])
        if _cycle(seen, log + middle * _XFS_SECTOR) >= cycle:
            low = middle
        else:
            high = middle
    return dataclasses.replace(mark, witness=Witness(log + low * _XFS_SECTOR, cycle))


def _cycle(seen: Seen, at: int) -> int:
    """A record begins with a magic number and then the cycle, each other sector with the cycle."""
    data = seen.at(at, 8)
    if len(data) < 8:
        return 0
    first, second = struct.unpack(">II", data)
    return int(second if first == _XLOG_MAGIC else first)
