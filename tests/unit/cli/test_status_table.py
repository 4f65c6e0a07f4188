# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of `status`: it fits the terminal, nothing of it is cut elsewhere, and users choose its columns."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_render import ATTACHED, AWAY, FOREIGN, HOSTILE

from nbdattach.attached.status import ImageStatus, ServerStatus, Status
from nbdattach.cli.status_table import chosen, chosen_table, objects, usual_table
from nbdattach.errors import Malformed

OURS = replace(ATTACHED, tag=ATTACHED.target)


def test_status_table() -> None:
    assert usual_table([OURS, FOREIGN], 80).splitlines() == [
        "DEVICE      STATE      SIZE   RO   TLS  TARGET             MOUNTED",
        "/dev/nbd0   connected  1 GiB  no   no   nbd://db1:99/disk  /srv, /mnt",
        "/dev/nbd15  connected  1 GiB  yes  no   ?                  -",
    ]


def test_status_table_tells_tls_and_holders() -> None:
    tls = {"version": "TLSv1.2", "cipher": "x", "transport": "kernel"}
    line = usual_table([replace(ATTACHED, tls=tls, mounts=[], holders=["dm-0", "swap"])], 80).splitlines()[1]
    assert line.split("  ")[3:] == ["no", "TLSv1.2", "mine", "nbd://db1:99/disk", "dm-0, swap"]


TROUBLES = {
    "tries later": (AWAY.trouble, "reconnecting since 2026-01-02T03:04:05Z, next try 2026-01-02T03:04:07Z: "
                                  r"nbd://db1: no\x1b"),
    "tries now": ({"since": "S", "next_try": None, "error": "nbd://db1: no"}, "reconnecting since S: nbd://db1: no"),
    "first try": ({"since": "S", "next_try": None, "error": ""}, "reconnecting since S: trying"),
}  # fmt: skip


@pytest.mark.parametrize(("trouble", "words"), TROUBLES.values(), ids=TROUBLES)
def test_status_table_tells_trouble_in_a_line_below(trouble: dict[str, str | None], words: str) -> None:
    lines = usual_table([replace(AWAY, trouble=trouble), FOREIGN], 80).splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [
        ["DEVICE", "STATE"], ["/dev/nbd0", "reconnecting"], ["/dev/nbd15", "connected"],
    ]  # fmt: skip
    assert lines[3:] == [f"/dev/nbd0: {words}"]


def test_each_device_in_trouble_has_its_line() -> None:
    lost = replace(AWAY, device="/dev/nbd1", state="lost")
    lines = usual_table([AWAY, ATTACHED, lost], 80).splitlines()
    assert [line.split(" since")[0] for line in lines[4:]] == ["/dev/nbd0: reconnecting", "/dev/nbd1: lost"]


def columns(line: str) -> int:
    """The columns that a terminal needs for it: wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in line)


WORST = replace(
    ATTACHED, device="/dev/nbd1048575", index=1048575, state="reconnecting", size=(1023 << 20) + 99999, read_only=True,
    tls={"version": "TLSv1.3"}, target="nbd+unix:///" + "x" * 4096 + "?socket=/run/s", mounts=["/srv/" + "y" * 4096],
)  # fmt: skip


@pytest.mark.parametrize(
    "found",
    [
        [WORST],
        [ATTACHED, WORST],
        [replace(WORST, target=None)],
        [replace(WORST, mounts=[], holders=[])],
        [replace(ATTACHED, mounts=["/m" * 9] * 99)],
        [replace(WORST, target=HOSTILE * 99, mounts=[HOSTILE * 99])],
    ],
)
def test_status_table_is_never_wider_than_a_terminal(found: list[Status]) -> None:
    lines = usual_table(found, 80).splitlines()
    assert len(lines) == 1 + len(found)
    assert max(map(columns, lines)) <= 80
    assert all(line.isprintable() for line in lines)
    for one, line in zip(found, lines[1:], strict=True):
        assert line.startswith(f"{one.device}  ")
        assert one.state in line


def test_status_table_is_never_wider_than_a_terminal_in_any_script() -> None:
    lines = usual_table([replace(ATTACHED, mounts=["/媒体" * 20])], 80).splitlines()
    assert max(map(columns, lines)) <= 80


@given(
    st.lists(
        st.builds(
            lambda device, state, size, target, mounts: replace(
                ATTACHED, device=f"/dev/nbd{device}", state=state, size=size, target=target, mounts=mounts
            ),
            st.integers(0, 1048575),
            st.sampled_from(["connected", "reconnecting", "lost"]),
            st.integers(0, (1 << 63) - 1),
            st.none() | st.text(st.characters(min_codepoint=0, max_codepoint=0x2FF), max_size=300),
            st.lists(st.text(st.characters(min_codepoint=0, max_codepoint=0x2FF), max_size=90), max_size=5),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_status_table_has_one_line_a_device_within_80_columns(found: list[Status]) -> None:
    lines = usual_table(found, 80).split("\n")
    assert len(lines) == 1 + len(found)
    assert all(len(line) <= 80 and line.isprintable() for line in lines)


def test_cut_cells_show_that_they_are_cut() -> None:
    rows = usual_table([WORST], 80).splitlines()
    assert rows[1].count("~") == 2


# -- other widths ------------------------------------------------------------------------------------------------------

LONG_TARGET = "nbd://a-server-with-a-long-name.example:10809/a-long-export"
LONG = replace(ATTACHED, target=LONG_TARGET, mounts=["/srv/vm/images"])


def test_at_40_columns_what_matters_least_is_left_out() -> None:
    assert usual_table([LONG, FOREIGN], 40).splitlines() == [
        "DEVICE      STATE      TARGET    MOUNTED",
        "/dev/nbd0   connected  nbd://a~  /srv/vm~",
        "/dev/nbd15  connected  ?         -",
    ]


def test_at_80_columns_the_target_is_cut() -> None:
    assert usual_table([LONG, FOREIGN], 80).splitlines() == [
        "DEVICE      STATE      SIZE   RO   TLS  TAG   TARGET              MOUNTED",
        "/dev/nbd0   connected  1 GiB  no   no   mine  nbd://a-server-wi~  /srv/vm/images",
        "/dev/nbd15  connected  1 GiB  yes  no   -     ?                   -",
    ]


@pytest.mark.parametrize("width", [0, 200])
def test_at_200_columns_and_in_a_pipe_it_is_whole(width: int) -> None:
    assert usual_table([LONG, FOREIGN], width).splitlines()[:2] == [
        f"DEVICE      STATE      SIZE   RO   TLS  TAG   {'TARGET':<{len(LONG_TARGET)}}  MOUNTED",
        f"/dev/nbd0   connected  1 GiB  no   no   mine  {LONG_TARGET}  /srv/vm/images",
    ]


def test_a_tag_is_shown_only_where_it_is_not_the_target() -> None:
    image = replace(OURS, image=ImageStatus("/srv/a.qcow2", "qcow2", []), tag="/srv/a.qcow2")
    server = replace(OURS, server=ServerStatus(["nbdkit"], 1, None, 0), tag="[ nbdkit memory 1G ]")
    assert "TAG" not in usual_table([OURS, FOREIGN, image, server], 0)
    assert usual_table([OURS, ATTACHED], 0).splitlines()[1].split()[6] == "-"


def test_no_headings_and_sizes_in_bytes() -> None:
    line = "/dev/nbd0  connected  1073741824  no  no  nbd://db1:99/disk  /srv, /mnt"
    assert usual_table([OURS], 0, headings=False, in_bytes=True) == line


# -- chosen columns ----------------------------------------------------------------------------------------------------


def test_chosen_columns_are_fields_of_the_json() -> None:
    fields = chosen("DEVICE,block-size,Size,read_only,mounts,also,tag")
    assert chosen_table([ATTACHED, FOREIGN], fields).splitlines() == [
        "DEVICE      BLOCK-SIZE  SIZE   READ-ONLY  MOUNTS      ALSO  TAG",
        "/dev/nbd0   512 B       1 GiB  no         /srv, /mnt  -     mine",
        "/dev/nbd15  512 B       1 GiB  yes        -           -     -",
    ]
    assert chosen_table([ATTACHED], ["size"], headings=False, in_bytes=True) == "1073741824"
    assert objects([ATTACHED], ["size", "tag"]) == [{"size": 1 << 30, "tag": "mine"}]


def test_all_of_them_can_be_chosen() -> None:
    rich = replace(
        AWAY,
        tls={"version": "TLSv1.3", "cipher": "x", "transport": "kernel"},
        server=ServerStatus(["nbdkit", "memory"], 1, None, 0),
        image=ImageStatus("/srv/a.qcow2", "qcow2", []),
    )
    assert [*objects([rich], None)[0]] == chosen("all")
    heads, line = chosen_table([rich], chosen("all")).splitlines()
    cells = dict(zip(heads.split(), line.split("  "), strict=False))
    assert heads.split()[:3] == ["DEVICE", "INDEX", "STATE"]
    assert "TLSv1.3" in line and "nbdkit memory" in line and "/srv/a.qcow2" in line
    assert cells["DEVICE"] == "/dev/nbd0"


@pytest.mark.parametrize("text", ["", "devise", "device,", "device;size"])
def test_a_column_that_does_not_exist_is_an_error(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        chosen(text)
    assert caught.value.cause.startswith("no column ")
    assert caught.value.hint.startswith("the columns are device, index, ")
