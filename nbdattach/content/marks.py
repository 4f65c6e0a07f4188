# SPDX-License-Identifier: GPL-2.0-or-later
"""What is remembered of a disk's content: data only.

Decisions that matter:
* `identity` is what never changes while a file system is in use. If it differs, it is another disk, unless a program
  wrote to the device itself since the last look (mkfs, a partition table).
* `grows` are counters that never go back. If one has gone back, the disk is an older snapshot.
* Many counters are written seldom. A journal is written all the time, so `witness` is one of its latest blocks: on the
  right disk it is there still, or has been overwritten by a later one.
* Marks say nothing about a disk without any, and no look says which of two programs wrote last. So `Sample`s of blocks
  are remembered, too: a disk of which no block is the same, though only a part of it was written, is another one.
"""

from __future__ import annotations

from dataclasses import field

from nbdattach.immutable import immutable


@immutable
class Witness:
    """A block of a journal: its offset on the disk in bytes, and the sequence number in it, 0 if it has none."""

    at: int
    sequence: int


@immutable
class Mark:
    """A file system, a table, or the like; `at` is the beginning in bytes of the partition (or disk) that has it.

    Of md with its superblock at the end of the disk, it is the place of that.
    """

    kind: str
    at: int
    identity: str
    grows: dict[str, int] = field(default_factory=dict)
    witness: Witness | None = None

    @property
    def key(self) -> tuple[str, int, str]:
        """The same for the same file system or table."""
        return self.kind, self.at, self.identity

    def __str__(self) -> str:
        return f"{self.kind} {self.identity}"


@immutable
class Sample:
    """A block: its offset in bytes, and its digest, "" if all its bytes are zero."""

    at: int
    digest: str


@immutable
class Content:
    """One look at a disk. `size` in bytes."""

    size: int
    marks: tuple[Mark, ...]
    samples: tuple[Sample, ...] = ()

    def has_marks_of(self, other: Content) -> bool:
        """Whether both have the same file systems and tables."""
        return {one.key for one in self.marks} == {one.key for one in other.marks}

    def within(self, size: int) -> Content:
        """Without that which is beyond the first `size` bytes."""
        marks = tuple(mark for mark in self.marks if mark.at < size)
        return Content(size, marks, tuple(one for one in self.samples if one.at < size))
