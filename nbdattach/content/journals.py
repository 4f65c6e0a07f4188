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
from nbdattach.immutable import immutable

# The sequence number of ext4's journal; it is counted modulo 2^32.
JOURNAL = "journal"
# Bytes of a witness that are read.
WITNESS = 12
_EXT = 1024
_HAS_JOURNAL = 0x4
_BACKUP_OF_BLOCKS = 1
_EXTENT_MAGIC = 0xF30A
# Of the tree in the inode itself.
_MOST_ENTRIES = 4
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
    extents = yield from _extents(seen, mark.at, at + 268, block)
    if not extents:
        return mark
    journal = extents[0].place
    yield from seen.read([(journal, 1024)])
    magic, kind = seen.unpack(">II", journal) or (0, 0)
    if magic != _JBD2_MAGIC or kind not in _JBD2_SUPERBLOCKS or seen.number(">I", journal + 12) != block:
        return mark
    length, first, sequence, start = seen.unpack(">IIII", journal + 16) or (0, 0, 0, 0)
    grows = {**mark.grows, JOURNAL: sequence}
    if check:
        witness = None
        if known:
            yield from seen.read([(known.at, WITNESS)])
            witness = Witness(known.at, _sequence(seen, known.at))
        return dataclasses.replace(mark, grows=grows, witness=witness)
    if not first <= start < length:
        return dataclasses.replace(mark, grows=grows)
    log = _Log(extents, block, first, length)
    later = known is not None and known.sequence and not is_past(sequence, known.sequence)
    number = log.number_of(known.at) if known and later else None
    witness = None
    if known and number is not None:
        witness = yield from _latest(seen, log, number, known.sequence)
    return dataclasses.replace(mark, grows=grows, witness=witness or (yield from _latest(seen, log, start, sequence)))


@immutable
class _Extent:
    """Blocks of a file that lie together: the number of the first one in the file, its offset on the disk, how many."""

    first: int
    place: int
    count: int


@immutable
class _Log:
    """Where the blocks of a journal are. After the last one, block `length` - 1, comes the block `first`."""

    extents: list[_Extent]
    block: int
    first: int
    length: int

    def place_of(self, number: int) -> int | None:
        for one in self.extents:
            if one.first <= number < one.first + one.count:
                return one.place + (number - one.first) * self.block
        return None

    def number_of(self, place: int) -> int | None:
        for one in self.extents:
            if one.place <= place < one.place + one.count * self.block:
                return one.first + (place - one.place) // self.block
        return None


def _extents(seen: Seen, base: int, at: int, block: int) -> Look[list[_Extent]]:
    """Of the inode whose tree of extents begins at `at`, with one level of more blocks at most."""
    magic, entries, _, depth = seen.unpack("<HHHH", at) or (0, 0, 0, 0)
    if magic != _EXTENT_MAGIC or not 0 < entries <= _MOST_ENTRIES or depth > 1:
        return []
    if not depth:
        return _leaf(seen, base, at, block)
    places = []
    for entry in range(at + 12, at + 12 * (entries + 1), 12):
        _, low, high = seen.unpack("<IIH", entry) or (0, 0, 0)
        places.append(base + (high << 32 | low) * block)
    yield from seen.read([(place, block) for place in places])
    return [one for place in places for one in _leaf(seen, base, place, block)]


def _leaf(seen: Seen, base: int, at: int, block: int) -> list[_Extent]:
    magic, entries, _, depth = seen.unpack("<HHHH", at) or (0, 0, 0, 0)
    if magic != _EXTENT_MAGIC or depth:
        return []
    found = []
    for entry in range(at + 12, at + 12 * (min(entries, block // 12) + 1), 12):
        first, count, high, low = seen.unpack("<IHHI", entry) or (0, 0, 0, 0)
        if count:
            found.append(_Extent(first, base + (high << 32 | low) * block, count))
    return found


def _latest(seen: Seen, log: _Log, number: int, sequence: int) -> Look[Witness | None]:
    """The block of the latest transaction that can be found from that number on, where `sequence` is.

    Sequence numbers have no gaps, so another number is that of an earlier round, or of a file system before this one.
    """
    best: Witness | None = None
    for _ in range(_CHUNKS):
        count = min(_CHUNK, log.length - number)
        places = [place for one in range(number, number + count) if (place := log.place_of(one)) is not None]
        yield from seen.read([(place, log.block) for place in places])
        before = best
        for place in places:
            found = _sequence(seen, place)
            if not found:
                continue
            if (found - (best.sequence if best else sequence)) % (1 << 32) > (1 if best else 0):
                return best
            best = Witness(place, found)
        number = log.first if number + count >= log.length else number + count
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
        yield from seen.read([(known.at, WITNESS)])
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
