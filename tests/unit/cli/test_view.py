# SPDX-License-Identifier: GPL-2.0-or-later
"""The live view as text: rates, histories, and pages that fit every terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import replace

import pytest
from attachments import PLAIN
from hypothesis import given
from hypothesis import strategies as st

from nbdattach.attached.status import Status
from nbdattach.cli import view
from nbdattach.cli.view import Sample, View
from nbdattach.kernel.sysfs import Stat

NOW = "2026-01-02T03:04:17Z"
MIB = 1 << 20
HOSTILE = "\x1b[2J\r\n\u202e\u2028\x9b'\\\udcff%s{0}"
AWAY = replace(
    PLAIN,
    device="/dev/nbd1",
    state="reconnecting",
    tag="nbd://db2",
    target="nbd://db2",
    mounts=["/srv", "/mnt"],
    holders=["dm-0"],
    trouble={"since": "2026-01-02T03:04:05Z", "next_try": "2026-01-02T03:04:20Z", "error": "nbd://db2: no"},
)
IDLE = Stat(0, 0, 0)


def sample(status: Status = PLAIN, read: int = 0, written: int = 0, inflight: int = 0) -> Sample:
    return Sample(status.device, status, Stat(read, written, inflight))


def seen(*looks: Iterable[Sample]) -> View:
    """A view after looks that were a second apart."""
    made = View()
    for moment, look in enumerate(looks):
        made.add(100.0 + moment, list(look))
    return made


def row(made: View, device: str = "/dev/nbd0") -> list[str]:
    """The cells after the state: two rates, requests in flight, history."""
    (line,) = (line for line in made.page(130, 24, NOW) if line.startswith(f"{device}  "))
    cells = [cell.strip() for cell in line.split("  ") if cell.strip()][2:]
    return cells[:3] + cells[5:]


# -- pages, whole ------------------------------------------------------------------------------------------------------

BUSY = seen(
    [sample(), sample(AWAY, inflight=3)],
    [sample(read=4 * MIB, written=0), sample(AWAY, inflight=3)],
    [sample(read=5 * MIB, written=1 * MIB, inflight=12), sample(AWAY, inflight=3)],
)


def test_page() -> None:
    assert BUSY.page(80, 24, NOW) == [
        "2 devices attached                                                       q: quit",
        "DEVICE     STATE            READ/s    WRITE/s  INFLIGHT   REQ/s  LATENCY",
        "/dev/nbd0  connected         1 MiB      1 MiB        12       0        -",
        "  nbd://db1/disk",
        "/dev/nbd1  reconnecting        0 B        0 B         3       0        -",
        "  nbd://db2, mounted at /srv, mounted at /mnt, held by dm-0",
        "  reconnecting for 12 s, next try in 3 s: nbd://db2: no",
    ]


def test_page_in_ascii() -> None:
    page = seen([sample(replace(PLAIN, tag=None, target="nbd://db1/ж"))], [sample(read=1)]).page(
        80, 24, NOW, ascii_only=True
    )
    assert page[2:] == [
        "/dev/nbd0  connected        1 B        0 B         0       0        -          #",
        "  nbd://db1/disk",
    ]
    assert seen([sample(replace(PLAIN, tag=None, target="nbd://db1/ж"))]).page(80, 24, NOW, ascii_only=True)[3] == (
        r"  nbd://db1/\u0436"
    )


def test_page_of_nothing() -> None:
    assert View().page(80, 24, NOW) == [
        "no device attached                                                       q: quit"
    ]
    assert View().page(20, 1, NOW) == ["no device attached"]


def test_what_is_asked_for_and_not_attached_is_shown_as_that() -> None:
    assert seen([Sample("/dev/nbd7", None, None), sample()]).page(60, 9, NOW) == [
        "1 device attached                                    q: quit",
        "DEVICE     STATE            READ/s    WRITE/s  INFLIGHT",
        "/dev/nbd7  not attached          -          -         -",
        "/dev/nbd0  connected             -          -         0",
        "  nbd://db1/disk",
    ]


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (70, ["DEVICE     STATE            READ/s    WRITE/s  INFLIGHT   REQ/s",
              "/dev/nbd1  reconnecting        0 B        0 B         3       0"]),
        (55, ["DEVICE     STATE            READ/s    WRITE/s  INFLIGHT",
              "/dev/nbd1  reconnecting        0 B        0 B         3"]),
        (50, ["DEVICE     STATE            READ/s    WRITE/s", "/dev/nbd1  reconnecting        0 B        0 B"]),
        (40, ["DEVICE     STATE            READ/s", "/dev/nbd1  reconnecting        0 B"]),
        (23, ["DEVICE     STATE", "/dev/nbd1  reconnecting"]),
        (22, ["DEVICE", "/dev/nbd1"]),
        (9, ["DEVICE", "/dev/nbd1"]),
        (8, ["DEVICE", "/dev/nb~"]),
        (1, ["~", "~"]),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_are_left_out_from_the_right(width: int, lines: list[str]) -> None:
    page = BUSY.page(width, 24, NOW)
    assert [page[1], page[4]] == lines


def test_a_wide_terminal_shows_five_minutes() -> None:
    made = seen(*([sample(read=second)] for second in range(400)))
    assert row(made)[-1] == "█" * 59
    assert made.page(500, 24, NOW)[2].count("█") == view.HISTORY == 300


# -- heights -----------------------------------------------------------------------------------------------------------

MANY = [replace(PLAIN, device=f"/dev/nbd{number}") for number in range(4)]
MANY[2] = replace(AWAY, device="/dev/nbd2")


@pytest.mark.parametrize(
    ("height", "begins"),
    [
        (1, ["4 not"]),
        (2, ["4 devi", "/dev/nbd0"]),
        (3, ["4 devi", "DEVICE", "/dev/nbd0"]),
        (5, ["4 devi", "DEVICE", "/dev/nbd0", "/dev/nbd1", "/dev/nbd2"]),
        (6, ["4 devi", "DEVICE", "/dev/nbd0", "/dev/nbd1", "/dev/nbd2", "/dev/nbd3"]),
        (7, ["4 devi", "DEVICE", "/dev/nbd0", "/dev/nbd1", "/dev/nbd2", "  reconn", "/dev/nbd3"]),
        (10, ["4 devi", "DEVICE", "/dev/nbd0", "/dev/nbd1", "/dev/nbd2", "  reconn", "/dev/nbd3"]),
        (11, ["4 devi", "DEVICE", "/dev/nbd0", "  nbd", "/dev/nbd1", "  nbd", "/dev/nbd2", "  nbd", "  reconn",
              "/dev/nbd3", "  nbd"]),
    ],
)  # fmt: skip
def test_devices_come_first_then_troubles_then_targets(height: int, begins: list[str]) -> None:
    lines = seen([sample(one) for one in MANY]).page(30 if height == 1 else 80, height, NOW)
    assert [line.startswith(begin) for line, begin in zip(lines, begins, strict=True)] == [True] * len(begins)


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (41, "4 devices attached, 2 not shown   q: quit"),
        (39, "4 devices attached, 2 not shown"),
        (31, "4 devices attached, 2 not shown"),
        (30, "2 not shown"),
        (11, "2 not shown"),
        (10, "+2"),
        (2, "+2"),
        (1, "~"),
    ],
)
def test_how_many_are_not_shown_is_said_in_any_width(width: int, line: str) -> None:
    assert seen([sample(one) for one in MANY]).page(width, 4, NOW)[0] == line


# -- rates -------------------------------------------------------------------------------------------------------------


def test_one_sample_makes_no_rate() -> None:
    assert row(seen([sample(read=MIB, inflight=2)])) == ["-", "-", "2"]


def test_rates_go_by_the_time_that_passed() -> None:
    made = View()
    for moment, written in ((5.0, 0), (7.5, 10 * MIB)):
        made.add(moment, [sample(written=written)])
    assert row(made)[:2] == ["0 B", "4 MiB"]


def test_no_time_makes_no_rate() -> None:
    made = View()
    for moment, written in ((5.0, 0), (6.0, 1024), (6.0, 4096)):
        made.add(moment, [sample(written=written)])
    assert row(made)[:2] == ["0 B", "1 KiB"]


@pytest.mark.parametrize(
    "anew",
    [
        sample(read=5, written=9 * MIB),
        sample(read=9 * MIB, written=5),
        sample(replace(PLAIN, since="2026-01-02T03:04:16Z"), 9 * MIB, 9 * MIB),
        sample(replace(PLAIN, pid=43), 9 * MIB, 9 * MIB),
    ],
    ids=["read less", "written less", "at another time", "by another worker"],
)
def test_a_device_that_was_attached_anew_begins_anew(anew: Sample) -> None:
    looks = [[sample()], [sample(read=MIB, written=MIB)]]
    assert row(seen(*looks))[:2] == ["1 MiB", "1 MiB"]
    assert row(seen(*looks, [anew])) == ["-", "-", "0"]
    later = replace(anew, stat=Stat(10 * MIB, 10 * MIB, 0))
    assert row(seen(*looks, [anew], [later]))[3] == "█"


def test_a_device_that_was_away_begins_anew() -> None:
    gone = [Sample("/dev/nbd0", None, None)]
    for away in ([], gone):
        assert row(seen([sample()], [sample(read=MIB)], away, [sample(read=2 * MIB)])) == ["-", "-", "0"]


def test_a_device_that_vanished_is_not_shown() -> None:
    assert [line.split()[0] for line in seen([sample(), sample(AWAY)], [sample()]).page(80, 24, NOW)] == [
        "1", "DEVICE", "/dev/nbd0", "nbd://db1/disk",
    ]  # fmt: skip


def test_a_device_without_counters_has_no_rates() -> None:
    bare = Sample("/dev/nbd0", PLAIN, None)
    assert row(seen([bare], [bare])) == ["-", "-", "-"]


@pytest.mark.parametrize(
    ("requests", "waited", "shown"),
    [
        (0, 0.0, ["0", "-"]),
        (1, 0.0, ["1", "0.0 ms"]),
        (4, 0.010, ["4", "2.5 ms"]),
        (1000, 34.0, ["1000", "34 ms"]),
        (1, 0.9991, ["1", "999 ms"]),
        (1, 0.9999, ["1", "1.0 s"]),
        (2, 5.0, ["2", "2.5 s"]),
        (1, 120.0, ["1", "120 s"]),
    ],
)
def test_requests_are_those_that_were_done_and_latency_is_their_mean(
    requests: int, waited: float, shown: list[str]
) -> None:
    done = Sample("/dev/nbd0", PLAIN, Stat(0, 0, 0, 70 + requests, 3.5 + waited))
    made = seen([Sample("/dev/nbd0", PLAIN, Stat(0, 0, 0, 70, 3.5))], [done])
    (line,) = (line for line in made.page(130, 24, NOW) if line.startswith("/dev/nbd0"))
    assert [cell.strip() for cell in line.split("  ") if cell.strip()][5:7] == shown


# -- history -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "bars"),
    [
        ([0, 0, 0], "▁▁▁"),
        ([1], "█"),
        ([1, 1], "██"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([0, 1, MIB], "▁▂█"),
        ([7 * MIB, 0, MIB], "█▁▂"),
    ],
)
def test_history_is_scaled_to_its_greatest_and_shows_the_least(rates: list[int], bars: str) -> None:
    """The lowest bar is for nothing at all: one byte is seen beside a mebibyte."""
    totals = [sum(rates[:end]) for end in range(len(rates) + 1)]
    assert row(seen(*([sample(read=total // 2, written=total - total // 2)] for total in totals)))[3] == bars


def test_history_that_is_not_shown_does_not_scale_it() -> None:
    made = seen(*([sample(read=read)] for read in (0, MIB, *(MIB + second for second in range(1, 31)))))
    assert row(made)[3] == "█" + "▂" * 30
    assert made.page(80, 24, NOW)[2].endswith("  " + "█" * 9)


# -- troubles and users ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "line"),
    [
        ({"since": NOW, "next_try": None, "error": "no"}, "reconnecting for 0 s: no"),
        ({"since": NOW, "next_try": None, "error": ""}, "reconnecting for 0 s: trying"),
        ({"since": NOW, "next_try": NOW, "error": "no"}, "reconnecting for 0 s, next try in 0 s: no"),
        ({"since": "2026-01-02T03:02:18Z", "next_try": None, "error": "no"}, "reconnecting for 1 min: no"),
        ({"since": "2026-01-02T01:04:16Z", "next_try": None, "error": "no"}, "reconnecting for 2 h: no"),
        ({"since": "2025-12-30T03:04:16Z", "next_try": None, "error": "no"}, "reconnecting for 3 d: no"),
        ({"since": "2026-01-02T03:05:17Z", "next_try": "2026-01-02T03:04:10Z", "error": "no"},
         "reconnecting for 0 s, next try in 0 s: no"),
        ({"since": HOSTILE, "next_try": "2026-01-02", "error": "no"}, "reconnecting for ?, next try in ?: no"),
        ({"since": None, "next_try": 7, "error": "no"}, "reconnecting for ?, next try in ?: no"),
        ({}, "reconnecting for ?: trying"),
    ],
)  # fmt: skip
def test_trouble_is_told_in_spans(trouble: dict[str, str | None], line: str) -> None:
    assert seen([sample(replace(AWAY, trouble=trouble))]).page(80, 24, NOW)[-1] == f"  {line}"


def test_the_cause_of_a_trouble_is_never_cut() -> None:
    cause = "nbd://db2: the export has another size than the device: " + "word " * 12 + "x" * 50
    trouble: dict[str, str | None] = {"since": NOW, "next_try": None, "error": cause}
    for width in (20, 40, 80, 200):
        lines = seen([sample(replace(AWAY, trouble=trouble))]).page(width, 90, NOW)
        assert max(map(len, lines)) <= width
        said = "".join(line.strip() for line in lines[4:]).replace(" ", "")
        assert said == f"reconnecting for 0 s: {cause}".replace(" ", "")


def test_further_lines_of_a_trouble_take_only_what_room_there_is() -> None:
    trouble: dict[str, str | None] = {"since": NOW, "next_try": None, "error": "word " * 40}
    away = [replace(AWAY, device=f"/dev/nbd{number}", trouble=trouble) for number in (1, 2)]
    lines = seen([sample(one) for one in away]).page(80, 7, NOW)
    assert [line[:10] for line in lines[2:]] == ["/dev/nbd1 ", "  reconnec", "  word wor", "/dev/nbd2 ", "  reconnec"]


def test_a_tag_of_its_own_is_shown_with_the_target() -> None:
    assert seen([sample(replace(PLAIN, tag="db"))]).page(80, 24, NOW)[3] == "  tag db, nbd://db1/disk"


def test_text_of_others_is_made_plain() -> None:
    trouble: dict[str, str | None] = {"since": NOW, "next_try": None, "error": HOSTILE}
    one = replace(
        AWAY, state="lost\x1b[2J", tag=HOSTILE, target=HOSTILE, mounts=[HOSTILE], holders=["dm\n"], trouble=trouble
    )
    page = seen([sample(one)]).page(200, 24, NOW)
    assert all(line.isprintable() for line in page)
    shown = r"\x1b[2J\r\n\u202e\u2028\x9b'\\udcff%s{0}"
    assert page[2].split()[:2] == ["/dev/nbd1", r"lost\x1b[2J"]
    assert page[3:] == [
        f"  {shown}, mounted at {shown}, held by dm\\n",
        f"  lost\\x1b[2J for 0 s: {shown}",
    ]


def test_what_others_attached_has_no_target() -> None:
    assert seen([sample(replace(PLAIN, tag=None, target=None, since=None))]).page(80, 24, NOW)[3] == "  ?"


# -- any sample --------------------------------------------------------------------------------------------------------


def columns(line: str) -> int:
    """The columns that a terminal needs for it: wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in line)


@pytest.mark.parametrize("width", [7, 8, 9, 20])
def test_wide_characters_are_cut_by_their_columns(width: int) -> None:
    line = seen([sample(replace(PLAIN, tag=None, target="媒" * 50))]).page(width, 24, NOW)[3]
    assert line == "  " + "媒" * ((width - 3) // 2) + "~"
    assert columns(line) in (width, width - 1)


TEXT = st.text(st.characters(max_codepoint=0xFFFF), max_size=60)


@given(
    st.lists(
        st.builds(
            lambda state, target, mounts, trouble: replace(
                PLAIN, state=state, target=target, mounts=mounts, trouble=trouble
            ),
            st.sampled_from(["connected", "reconnecting", "lost"]) | TEXT,
            st.none() | TEXT,
            st.lists(TEXT, max_size=3),
            st.none() | st.fixed_dictionaries({"since": TEXT, "next_try": st.none() | TEXT, "error": TEXT}),
        ),
        max_size=6,
    ),
    st.lists(st.integers(0, 1 << 63), min_size=1, max_size=4),
    st.integers(1, 130),
    st.integers(1, 30),
    st.booleans(),
)
def test_any_page_fits(found: list[Status], counts: list[int], width: int, height: int, ascii_only: bool) -> None:
    found = [replace(one, device=f"/dev/nbd{1048570 + at}") for at, one in enumerate(found)]
    made = seen(*([sample(one, count, count, count) for one in found] for count in counts))
    page = made.page(width, height, NOW, ascii_only)
    assert 1 <= len(page) <= height
    assert all(columns(line) <= width and line.isprintable() for line in page)
    assert not ascii_only or all(line.isascii() for line in page)
    if width >= 33:
        hidden = len(found) - sum(line.startswith("/dev/nbd") for line in page)
        assert (f"{hidden} not shown" in page[0]) == (hidden > 0)
