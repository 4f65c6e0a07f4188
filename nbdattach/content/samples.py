# SPDX-License-Identifier: GPL-2.0-or-later
"""Some blocks of a disk, which tell disks apart that have no file system or table.

Decision that matters: a block of zeros says nothing, as other disks have zeros there, too. While most of the samples
are such blocks, each look takes others in their place.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from nbdattach.content.marks import Content, Sample
from nbdattach.content.reading import Seen

_COUNT = 16
# Half of them are in this first part of the disk, which is seldom empty.
_FIRST_PART = 16


def places(size: int, block: int, known: Content | None, check: bool) -> list[int]:
    """Where they are, by what the look before has found; the same as there with `check`."""
    blocks = size // block
    if not known or not known.samples:
        return sorted({_place(f"{number} of {size}", blocks) * block for number in range(_COUNT if blocks else 0)})
    chosen = {one.at for one in known.samples}
    empty = [one.at for one in known.samples if not one.digest]
    if not check and 2 * len(empty) > len(chosen):
        for place in empty:
            other = _place(f"after {place} of {size}", blocks) * block
            if other not in chosen:
                chosen.remove(place)
                chosen.add(other)
    return sorted(chosen)


def _place(name: str, blocks: int) -> int:
    """A block by chance, but the same for the same name."""
    chance = zlib.crc32(name.encode())
    return (chance >> 1) % max(blocks // (_FIRST_PART if chance & 1 else 1), 1)


def samples(seen: Seen, places: Sequence[int], block: int) -> tuple[Sample, ...]:
    read = ((place, seen.at(place, block)) for place in places)
    return tuple(Sample(place, _digest(data)) for place, data in read if len(data) == block)


def _digest(data: bytes) -> str:
    """Against accidents, not attacks: who can forge a block can forge a disk."""
    return f"{zlib.crc32(data):08x}{zlib.adler32(data):08x}" if any(data) else ""
