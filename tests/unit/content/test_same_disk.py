# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a disk is the one that was attached: a table of what may and what may not take its place."""

from __future__ import annotations

import dataclasses

import pytest

from nbdattach.content.marks import Content, Mark, Sample, Witness
from nbdattach.content.same_disk import Since, difference, lacks_proof, stayed_behind

SIZE = 1 << 30
QUIET = Since(written=0, by_program=False, nothing=True)
FILES = Since(written=1 << 20, by_program=False)
TOOL = Since(written=1 << 20, by_program=True)
MUCH = Since(written=SIZE, by_program=True)
UNKNOWN = Since(written=None, by_program=True)
MARK = Mark("ext4", 0, "a-uuid", {"kbytes written": 10, "journal": 20}, Witness(4096, 25))
SAMPLES = tuple(Sample(at << 26, f"{at + 1:016x}") for at in range(8))
KNOWN = Content(SIZE, (MARK,), SAMPLES)
OTHER_SAMPLES = tuple(Sample(one.at, "f" * 16) for one in SAMPLES)
SOME_SAMPLES = (*SAMPLES[:1], *OTHER_SAMPLES[1:])


def with_mark(samples: tuple[Sample, ...] = SAMPLES, **changes: object) -> Content:
    return Content(SIZE, (dataclasses.replace(MARK, **changes),), samples)  # type: ignore[arg-type]


def test_the_same_disk_is_the_same_at_any_time() -> None:
    for since in (QUIET, FILES, TOOL, MUCH, UNKNOWN):
        assert difference(KNOWN, KNOWN, since) is None


def test_a_disk_in_use_goes_on() -> None:
    later = {"kbytes written": 11, "journal": 24}
    assert difference(KNOWN, with_mark(SOME_SAMPLES, grows=later), FILES) is None
    assert difference(KNOWN, with_mark(OTHER_SAMPLES, grows=later), FILES) is None  # a file system is in it


@pytest.mark.parametrize("samples", [SAMPLES, SOME_SAMPLES, OTHER_SAMPLES])
def test_another_file_system_is_another_disk(samples: tuple[Sample, ...]) -> None:
    found = with_mark(samples, identity="b-uuid")
    assert difference(KNOWN, found, FILES) == "it has ext4 b-uuid now, ext4 a-uuid was attached"
    assert difference(KNOWN, Content(SIZE, (), samples), FILES) == (
        "it has no such file system or table now, ext4 a-uuid was attached"
    )


def test_a_file_system_where_there_was_none_is_another_disk() -> None:
    assert difference(Content(SIZE, (), SAMPLES), KNOWN, FILES) == (
        "it has ext4 a-uuid now, no such file system or table was attached"
    )


def test_a_program_may_have_made_it_anew() -> None:
    """As long as the rest of the disk does not tell that it is another one."""
    found = with_mark(SOME_SAMPLES, identity="b-uuid")
    assert difference(KNOWN, found, TOOL) is None
    assert difference(KNOWN, with_mark(OTHER_SAMPLES, identity="b-uuid"), MUCH) is None  # mkfs discards the whole disk
    assert difference(KNOWN, with_mark(OTHER_SAMPLES, identity="b-uuid"), UNKNOWN) is None


def test_a_disk_of_which_no_block_is_left_is_another_one() -> None:
    found = with_mark(OTHER_SAMPLES, identity="b-uuid")
    assert difference(KNOWN, found, TOOL) == "it has ext4 b-uuid now, ext4 a-uuid was attached"


def test_a_new_disk_of_zeros_tells_nothing_when_mkfs_has_run() -> None:
    empty = Content(SIZE, (), tuple(Sample(one.at, "") for one in SAMPLES))
    assert difference(empty, KNOWN, TOOL) is None


@pytest.mark.parametrize(
    ("grows", "cause"),
    [
        ({"kbytes written": 9, "journal": 20}, "kbytes written 9, it was 10"),
        ({"kbytes written": 10, "journal": 19}, "journal 19, it was 20"),
    ],
)
def test_a_counter_that_went_back_is_an_older_state(grows: dict[str, int], cause: str) -> None:
    found = with_mark(grows=grows)
    assert difference(KNOWN, found, FILES) == f"it is an older state of ext4 a-uuid: {cause}"
    assert difference(KNOWN, found, QUIET) is not None


def test_the_journals_numbers_begin_anew_after_the_last() -> None:
    last = (1 << 32) - 2
    known = with_mark(grows={"journal": last}, witness=Witness(4096, last + 1))
    assert difference(known, with_mark(grows={"journal": 5}, witness=Witness(4096, 7)), FILES) is None
    assert difference(known, with_mark(grows={"journal": 5}, witness=Witness(4096, 0)), FILES) is None
    assert difference(with_mark(grows={"journal": 5}), with_mark(grows={"journal": last}), FILES) is not None


@pytest.mark.parametrize(
    ("sequence", "oldest", "same"),
    [
        (25, 20, True),  # as it was
        (30, 20, True),  # overwritten by a later transaction
        (0, 26, True),  # overwritten by data, and the journal has passed it
        (0, 20, False),  # never written
        (0, 25, False),
        (12, 20, False),  # written in an earlier round
        (12, 26, True),
    ],
)
def test_witness_of_a_journal(sequence: int, oldest: int, same: bool) -> None:
    found = with_mark(grows={"kbytes written": 10, "journal": oldest}, witness=Witness(4096, sequence))
    expected = None if same else "it is an older state of ext4 a-uuid: transaction 25 of its journal is missing"
    assert difference(KNOWN, found, FILES) == expected


def test_cycle_of_a_log() -> None:
    known = Content(SIZE, (Mark("xfs", 0, "x", {}, Witness(512, 3)),))
    assert difference(known, Content(SIZE, (Mark("xfs", 0, "x", {}, Witness(512, 4)),)), FILES) is None
    assert difference(known, Content(SIZE, (Mark("xfs", 0, "x", {}, Witness(512, 2)),)), FILES) == (
        "it is an older state of xfs x: log cycle 2, it was 3"
    )


def test_md_takes_one_event_back() -> None:
    known = Content(SIZE, (Mark("md", 0, "m", {"events": 20}),))
    assert difference(known, Content(SIZE, (Mark("md", 0, "m", {"events": 19}),)), FILES) is None
    assert difference(known, Content(SIZE, (Mark("md", 0, "m", {"events": 18}),)), FILES) is not None


def test_of_a_disk_without_marks_the_blocks_tell() -> None:
    known = Content(SIZE, (), SAMPLES)
    assert difference(known, Content(SIZE, (), SOME_SAMPLES), FILES) is None
    assert difference(known, Content(SIZE, (), OTHER_SAMPLES), MUCH) is None
    assert difference(known, Content(SIZE, (), OTHER_SAMPLES), UNKNOWN) is None
    assert difference(known, Content(SIZE, (), OTHER_SAMPLES), TOOL) == (
        "all 8 blocks that were looked at differ, though little was written since"
    )


def test_nothing_may_differ_if_nothing_was_written() -> None:
    for marks in ((), (MARK,)):
        known, found = Content(SIZE, marks, SAMPLES), Content(SIZE, marks, (*SAMPLES[:-1], OTHER_SAMPLES[-1]))
        assert difference(known, found, QUIET) == "1 of 8 blocks differ, and nothing was written since they were read"
        assert difference(known, found, dataclasses.replace(QUIET, by_others=True)) is None
        assert difference(known, found, dataclasses.replace(QUIET, nothing=False)) is None
        assert difference(known, found, FILES) is None


def test_other_hosts_may_write_to_shared_volumes() -> None:
    mark = Mark("lvm", 0, "pv", {"seqno": 4})
    known = Content(SIZE, (mark,), SAMPLES)
    assert difference(known, Content(SIZE, (mark,), OTHER_SAMPLES), QUIET) is None


def test_an_image_that_was_written_over_the_only_part_with_data_is_accepted() -> None:
    samples = tuple(Sample(at << 20, f"{at + 1:016x}") for at in range(8))
    known = Content(SIZE, (MARK,), samples)
    found = with_mark(tuple(Sample(one.at, "f" * 16) for one in samples), identity="b-uuid")
    assert difference(known, found, Since(written=8 << 20, by_program=True)) is None
    assert difference(known, found, TOOL) is not None


# -- servers that the device has left ----------------------------------------------------------------------------------

LATER = (*SAMPLES[:6], *OTHER_SAMPLES[6:])
RAW, RAW_LATER = Content(SIZE, (), SAMPLES), Content(SIZE, (), LATER)


def test_a_server_that_missed_the_writes_stays_behind() -> None:
    assert stayed_behind(RAW, RAW, RAW_LATER, RAW) == "it has not what was written since the device left it"
    assert stayed_behind(RAW, RAW, RAW_LATER, Content(SIZE, (), (*SAMPLES[:7], OTHER_SAMPLES[7]))) is not None


def test_a_server_that_has_the_writes_does_not() -> None:
    assert stayed_behind(RAW, RAW, RAW_LATER, RAW_LATER) is None
    newer = Content(SIZE, (), (*LATER[:7], Sample(SAMPLES[7].at, "e" * 16)))
    assert stayed_behind(RAW, RAW, RAW_LATER, newer) is None
    later = with_mark(grows={"kbytes written": 11, "journal": 24})
    assert stayed_behind(KNOWN, KNOWN, later, later) is None  # that it is no older state is told by `difference`
    assert difference(later, KNOWN, FILES) is not None


def test_what_the_first_look_after_the_move_shows_may_be_the_work_of_the_server_before() -> None:
    later = with_mark(grows={"kbytes written": 11, "journal": 24})
    assert stayed_behind(KNOWN, later, later, later) == NOTHING_SHOWS
    assert stayed_behind(RAW, RAW_LATER, RAW_LATER, RAW) is not None  # but of blocks, it is what was there
    assert stayed_behind(RAW, RAW_LATER, RAW_LATER, RAW_LATER) is None


def test_a_disk_that_shows_no_progress_proves_nothing() -> None:
    assert stayed_behind(KNOWN, KNOWN, KNOWN, KNOWN) == NOTHING_SHOWS


NOTHING_SHOWS = "nothing shows whether it has what was written since the device left it"
GPT, BOOT, LUKS = (
    Mark("gpt", 0, "g"),
    dataclasses.replace(MARK, at=1 << 20),
    Mark("luks", 1 << 28, "l", {"sequence": 4}),
)


@pytest.mark.parametrize("marks", [(), (LUKS,), (GPT, BOOT, LUKS), (GPT, Mark("vfat", 1 << 20, "v")), (GPT,)])
def test_what_never_shows_is_the_users_word(marks: tuple[Mark, ...]) -> None:
    """LUKS, LVM and disks without a file system show no progress; a file system beside them may not be written to."""
    known = Content(SIZE, marks, SAMPLES)
    assert stayed_behind(known, known, known, known) is None
    assert stayed_behind(known, known, Content(SIZE, marks, LATER), known) is not None
    neither = Content(SIZE, marks, (*SAMPLES[:6], *(Sample(one.at, "e" * 16) for one in SAMPLES[6:])))
    assert (
        stayed_behind(known, known, Content(SIZE, marks, LATER), neither) is None
    )  # written again since the last look


def test_a_file_system_alone_must_show_it() -> None:
    known = Content(SIZE, (GPT, Mark("vfat", 1 << 20, "v"), dataclasses.replace(MARK, at=1 << 28)), SAMPLES)
    assert stayed_behind(known, known, known, known) == NOTHING_SHOWS


def test_a_disk_of_which_nothing_is_as_it_was_is_no_proof() -> None:
    luks = Mark("luks", 0, "l", {"sequence": 4})
    known, found = Content(SIZE, (luks,), SAMPLES), Content(SIZE, (luks,), OTHER_SAMPLES)
    assert lacks_proof(known, found, FILES) == "none of the 8 blocks with data that were looked at is as it was"
    assert lacks_proof(known, found, MUCH) is None
    assert lacks_proof(known, Content(SIZE, (luks,), SOME_SAMPLES), FILES) is None
    assert lacks_proof(RAW, Content(SIZE, (), OTHER_SAMPLES), MUCH) is not None  # nothing else speaks for it
    few = Content(SIZE, (), SAMPLES[:2])
    assert lacks_proof(few, Content(SIZE, (), tuple(Sample(one.at, "") for one in SAMPLES[:2])), MUCH) is not None
    assert lacks_proof(few, Content(SIZE, (), OTHER_SAMPLES[:2]), FILES) is None  # such blocks may be written often


def test_an_empty_disk_does_not_become_a_full_one_in_a_moment() -> None:
    empty = Content(SIZE, (), tuple(Sample(one.at, "") for one in SAMPLES))
    assert lacks_proof(empty, empty, FILES) is None
    assert lacks_proof(empty, RAW, FILES) is not None
    assert lacks_proof(empty, RAW, MUCH) is None


def test_what_may_be_the_work_of_blkdiscard_is_accepted() -> None:
    unused = Since(written=1 << 20, by_program=False, unused=True)
    blank = Content(SIZE, (), tuple(Sample(one.at, "") for one in SAMPLES))
    assert difference(KNOWN, Content(SIZE, (), SOME_SAMPLES), unused) is None
    assert difference(KNOWN, blank, dataclasses.replace(unused, written=SIZE)) is None
    assert difference(KNOWN, with_mark(OTHER_SAMPLES, identity="b-uuid"), unused) is not None
    older = with_mark(SOME_SAMPLES, grows={"kbytes written": 9, "journal": 19})
    assert difference(KNOWN, older, unused) is not None  # no such program goes back in time
    beside = Content(SIZE, (*older.marks, LUKS), SOME_SAMPLES)
    assert difference(KNOWN, beside, unused) is not None
    assert difference(KNOWN, older, TOOL) is None
