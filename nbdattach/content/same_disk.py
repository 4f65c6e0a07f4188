# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a disk is the one that was attached, by what is remembered of its content. No I/O."""

from __future__ import annotations

from nbdattach.content.journals import JOURNAL, is_past
from nbdattach.content.marks import Content, Mark
from nbdattach.immutable import immutable

# md takes back its count of events by one when an array becomes clean again (md_update_sb).
_GOES_BACK = {"events": 1}
# Several hosts may write to disks with these.
_SHARED = ("lvm", "gfs2")
# What is written to these shows within seconds.
_JOURNALED = ("ext4", "xfs", "btrfs")
# Beside these, what users write goes to the others.
_SELDOM_WRITTEN = ("gpt", "mbr", "vfat")
# So many samples must speak: of fewer, a program may have overwritten all.
_ENOUGH = 4
# If more was written since the last look than this part of where those samples are, samples that differ say nothing.
_PART = 4


@immutable
class Since:
    """What has happened to the attached disk since the last look.

    `written` in bytes; None if it is not known. `nothing`: nothing was written, for sure, and all that was written
    before is on the server's disk, even if its machine has crashed. `by_program`: a program wrote to the device itself,
    not to a file system on it, so that everything may be new. `unused`: something was written, though no file system
    used the device. `by_others`: other hosts may write to the disk, too.
    """

    written: int | None
    by_program: bool
    by_others: bool = False
    unused: bool = False
    nothing: bool = False


def difference(known: Content, found: Content, since: Since) -> str | None:
    """How the disk that was found differs from the one that is known; None if it may be the same."""
    kept, lost, new = _compared(known, found)
    replaced = not kept and len(lost) >= _ENOUGH and _is_little(since.written, lost)
    by_program = since.by_program and since.written != 0
    unused = since.unused and bool(kept or not found.marks)
    other, older = _other_marks(known, found), _older_marks(known, found)
    if other and (replaced or not (by_program or unused)):
        return other  # else it may be the work of mkfs, of a partitioning tool, or of blkdiscard
    if older and (replaced or not by_program):
        return older
    if other or older:
        return None
    if replaced and not known.marks:
        return f"all {len(lost)} blocks that were looked at differ, though little was written since"
    others = since.by_others or any(mark.kind in _SHARED for mark in known.marks)
    if since.nothing and (lost or new) and not others:
        changed = len(lost) + len(new)
        return f"{changed} of {len(known.samples)} blocks differ, and nothing was written since they were read"
    return None


def lacks_proof(known: Content, found: Content, since: Since) -> str | None:
    """Why a disk that `difference` lets pass may be another one; None if it need not be."""
    kept, lost, new = _compared(known, found)
    changed = [*lost, *new]
    too_many = len(changed) >= _ENOUGH and _is_little(since.written, changed)
    is_blank = bool(lost) and not any(one.digest for one in found.samples if one.at in lost)
    if not kept and (too_many or (not known.marks and (len(lost) >= _ENOUGH or is_blank))):
        return f"none of the {len(changed)} blocks with data that were looked at is as it was"
    return None


def stayed_behind(left: Content, moved: Content, known: Content, found: Content) -> str | None:
    """Why a disk that the device has left may lack what was written until `known`; None if it has that.

    `left`: what was known when it was left; `moved`: the first look after the last move, which may be the work of the
    server before.
    """
    if _has_old_blocks(left, known, found) or _has_old_blocks(moved, known, found):
        return "it has not what was written since the device left it"
    has_new_blocks = set(_changed(moved, known)).difference(_changed(known, found))
    if _progress(moved) != _progress(known) or has_new_blocks:
        return None  # of marks that have moved on, an older state is noticed
    kinds = {mark.kind for mark in known.marks}.difference(_SELDOM_WRITTEN)
    if kinds and kinds.issubset(_JOURNALED):
        return "nothing shows whether it has what was written since the device left it"
    return None  # nothing ever would show: it is the user's word that the servers have the same data


def _changed(before: Content, after: Content) -> list[int]:
    """Where the blocks are that changed."""
    old = {one.at: one.digest for one in before.samples}
    return [one.at for one in after.samples if one.digest != old.get(one.at, one.digest)]


def _has_old_blocks(before: Content, known: Content, found: Content) -> bool:
    changed = set(_changed(before, known))
    return bool(changed.difference(_changed(before, found)) & {one.at for one in found.samples})


def _progress(content: Content) -> list[tuple[object, ...]]:
    return [(one.key, sorted(one.grows.items()), one.witness) for one in content.marks]


def _other_marks(known: Content, found: Content) -> str | None:
    before = {one.key for one in known.marks}
    now = {one.key for one in found.marks}
    gone = [one for one in known.marks if one.key not in now]
    new = [one for one in found.marks if one.key not in before]
    return f"it has {_named(new)} now, {_named(gone)} was attached" if gone or new else None


def _older_marks(known: Content, found: Content) -> str | None:
    now = {one.key: one for one in found.marks}
    for mark in known.marks:
        older = _older(mark, now[mark.key]) if mark.key in now else None
        if older:
            return f"it is an older state of {mark}: {older}"
    return None


def _named(marks: list[Mark]) -> str:
    return str(marks[0]) if marks else "no such file system or table"


def _older(known: Mark, found: Mark) -> str | None:
    for name, value in known.grows.items():
        now = found.grows.get(name)
        if now is not None and _went_back(name, value, now):
            return f"{name} {now}, it was {value}"
    if known.witness and found.witness and found.witness.at == known.witness.at:
        was, is_now = known.witness.sequence, found.witness.sequence
        if known.kind == "xfs":
            return f"log cycle {is_now}, it was {was}" if is_now < was else None
        intact = is_now == was or (is_now and is_past(is_now, was))
        if not intact and not is_past(found.grows.get(JOURNAL, 0), was):
            return f"transaction {was} of its journal is missing"
    return None


def _went_back(name: str, value: int, now: int) -> bool:
    if name == JOURNAL:
        return is_past(value, now)
    return now < value - _GOES_BACK.get(name, 0)


def _compared(known: Content, found: Content) -> tuple[int, list[int], list[int]]:
    """How many blocks with data are as they were, and where those are that changed: with data before, and empty."""
    now = {one.at: one.digest for one in found.samples}
    both = [(one.at, one.digest, now[one.at]) for one in known.samples if one.at in now]
    kept = sum(1 for _, was, is_now in both if was and was == is_now)
    lost = [at for at, was, is_now in both if was and was != is_now]
    return kept, lost, [at for at, was, is_now in both if not was and is_now]


def _is_little(written: int | None, places: list[int]) -> bool:
    """Whether a program that writes one block after the other cannot have overwritten all these blocks."""
    return written is not None and written <= (max(places) - min(places)) // _PART
