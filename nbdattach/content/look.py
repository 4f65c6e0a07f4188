# SPDX-License-Identifier: GPL-2.0-or-later
"""One look at a disk: a few KiB, however large it is.

With `check` in few rounds: the disk and its table; partitions; journals and other things that these point to.
"""

from __future__ import annotations

from nbdattach.content import journals, signatures, tables
from nbdattach.content.marks import Content, Mark, Witness
from nbdattach.content.reading import Look, Seen, together
from nbdattach.content.samples import places, samples


def look(size: int, block: int, known: Content | None = None, check: bool = False) -> Look[Content]:
    """What is on the disk now. `size` and `block` in bytes; `known` is the look before.

    With `check` it is read over a network, and may be another disk than the known one: the same samples are read, and
    only those blocks of journals that are known. Without, the look finds how far journals have come.
    """
    seen = Seen(size, block)
    at = places(size, block, known, check)
    ranges = [*signatures.head_of(0), *signatures.tail_of(size), *((place, block) for place in at)]
    # Before the superblocks of their journals, which may pass them meanwhile.
    ranges += [(mark.witness.at, journals.WITNESS) for mark in known.marks if mark.witness] if known else []
    yield from seen.read(ranges)
    found, starts = yield from tables.table(seen)
    starts = sorted({start for start in starts if 0 < start < size})[: tables.MAX_PARTITIONS]
    yield from seen.read([one for start in starts for one in signatures.head_of(start)])
    volumes = yield from together([signatures.marks_at(seen, base) for base in (0, *starts)])
    found += [mark for marks in volumes for mark in marks]
    marks = yield from together([journals.followed(seen, one, _witness(known, one), check) for one in found])
    return Content(size, tuple(marks), samples(seen, at, block))


def _witness(known: Content | None, mark: Mark) -> Witness | None:
    for one in known.marks if known else ():
        if one.key == mark.key:
            return one.witness
    return None
