# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as people and programs read them: JSON is the contract's to the key, a table fits the terminal."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from attachments import PLAIN
from hypothesis import given
from hypothesis import strategies as st

from nbdattach.attached.status import Status
from nbdattach.backends.durability import lack_of_flush
from nbdattach.backends.limits import refusal
from nbdattach.cli import render
from nbdattach.cli.render import size_text
from nbdattach.cli.status_table import objects
from nbdattach.connection.client import Checked, Inspected
from nbdattach.errors import Refused
from nbdattach.protocol.export import BlockSize, Export, Listed
from nbdattach.protocol.target import Target
from nbdattach.server_of_ours import Image

TARGET = Target("db1", 99, export="disk")
EMPTY = refusal("nbd://db1", Export("", 0, 0, "oldstyle"))
HOSTILE = "\x1b[2J\r\n\u202e\u2028\x9b'\\\udcff%s{0}"
ATTACHED = replace(
    PLAIN, tag="mine", target="nbd://db1:99/disk", backend="ioctl", pid=42, mounts=["/srv", "/mnt"], holders=["dm-0"]
)
FOREIGN = replace(
    ATTACHED, device="/dev/nbd15", index=15, tag=None, target=None, export=None, backend=None, since=None,
    read_only=True, mounts=[], holders=[],
)  # fmt: skip
EXPORT = Export("disk", 1 << 40, 0x0107, "newstyle-fixed", "of all", BlockSize(512, 4096, 1 << 25))


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1, "1 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1 << 20, "1 MiB"),
        (1000 << 20, "1000 MiB"),
        (21 << 29, "10.5 GiB"),
        (1 << 40, "1 TiB"),
        (1 << 50, "1 PiB"),
        ((1 << 63) - 1, "8 EiB"),
        ((1 << 64) - 1, "16 EiB"),
    ],
)
def test_size_is_in_the_largest_unit(size: int | None, text: str) -> None:
    assert size_text(size) == text


UNITS = {name: 1 << 10 * power for power, name in enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))}


@given(st.one_of(st.integers(0, 2000), st.integers(0, (1 << 64) - 1), st.integers(0, 63).map(lambda bit: 1 << bit)))
def test_size_is_right_to_four_digits(size: int) -> None:
    number, unit = size_text(size).split(" ")
    assert abs(float(number) * UNITS[unit] - size) <= size / 1000
    assert float(number) <= 1024
    assert len(number) <= 5


# -- JSON, as in the contract ------------------------------------------------------------------------------------------

STATUS_KEYS = [
    "device", "index", "state", "tag", "target", "export", "size", "block_size", "read_only", "backend",
    "connections", "tls", "pid", "since", "mounts", "holders", "also", "server", "image",
]  # fmt: skip
INFO_KEYS = ["target", "export", "description", "size", "flags", "block_size", "protocol", "tls", "cannot_be_attached"]
CHECK_KEYS = ["target", "ok", "handshake_ms", "read_ms", "error"]


def status_json(found: list[Status]) -> str:
    """As the command prints it."""
    return render.as_json(objects(found, None))


def test_status_json_is_a_list_of_the_contracts_objects() -> None:
    found = json.loads(status_json([ATTACHED, FOREIGN]))
    assert [list(one) for one in found] == [STATUS_KEYS, STATUS_KEYS]
    assert found[0] == {
        "device": "/dev/nbd0",
        "index": 0,
        "state": "connected",
        "tag": "mine",
        "target": "nbd://db1:99/disk",
        "export": "disk",
        "size": 1 << 30,
        "block_size": 512,
        "read_only": False,
        "backend": "ioctl",
        "connections": 1,
        "tls": None,
        "pid": 42,
        "since": "2026-01-02T03:04:05Z",
        "mounts": ["/srv", "/mnt"],
        "holders": ["dm-0"],
        "also": [],
        "server": None,
        "image": None,
    }
    assert {key for key, value in found[1].items() if value is None} == {
        "tag", "target", "export", "backend", "tls", "since", "server", "image",
    }  # fmt: skip


def test_status_json_of_nothing_is_an_empty_list() -> None:
    assert json.loads(status_json([])) == []


def test_connect_json_is_one_object_of_status() -> None:
    assert render.as_json(render.status_object(ATTACHED)) == json.dumps(
        json.loads(status_json([ATTACHED]))[0], indent=2
    )


def test_status_json_tells_tls() -> None:
    tls = {"version": "TLSv1.2", "cipher": "ECDHE-RSA-AES128-GCM-SHA256", "transport": "kernel"}
    found = json.loads(status_json([replace(ATTACHED, tls=tls)]))[0]["tls"]
    assert (list(found), found) == (["version", "cipher", "transport"], tls)


def test_info_json_is_the_contracts() -> None:
    found = json.loads(render.info_json(TARGET.uri, Inspected(EXPORT, ("TLSv1.3", "TLS_AES_256_GCM_SHA384"))))
    assert list(found) == INFO_KEYS
    assert list(found["block_size"]) == ["minimum", "preferred", "maximum"]
    assert list(found["tls"]) == ["version", "cipher", "names", "expires"]
    assert found == {
        "target": "nbd://db1:99/disk",
        "export": "disk",
        "description": "of all",
        "size": 1 << 40,
        "flags": ["has_flags", "read_only", "send_flush", "can_multi_conn"],
        "block_size": {"minimum": 512, "preferred": 4096, "maximum": 1 << 25},
        "protocol": "newstyle-fixed",
        "tls": {"version": "TLSv1.3", "cipher": "TLS_AES_256_GCM_SHA384", "names": [], "expires": None},
        "cannot_be_attached": None,
    }


def test_info_json_has_all_its_keys_when_little_is_known() -> None:
    found = json.loads(render.info_json("nbd://db1", Inspected(Export("", 0, 0, "oldstyle"), None), EMPTY))
    assert list(found) == INFO_KEYS
    assert found == {
        "target": "nbd://db1",
        "export": "",
        "description": "",
        "size": 0,
        "flags": [],
        "block_size": None,
        "protocol": "oldstyle",
        "tls": None,
        "cannot_be_attached": "the export has 0 bytes, less than one block of 512",
    }


def test_list_json_is_the_contracts() -> None:
    found = json.loads(render.list_json(TARGET.server, [Listed("disk", "of all", 512), Listed("", "", None)]))
    assert list(found) == ["target", "exports"]
    assert [list(one) for one in found["exports"]] == [["name", "description", "size"]] * 2
    assert found == {
        "target": "nbd://db1:99",
        "exports": [
            {"name": "disk", "description": "of all", "size": 512},
            {"name": "", "description": "", "size": None},
        ],
    }


def test_list_json_of_an_empty_server() -> None:
    assert json.loads(render.list_json(TARGET.server, [])) == {"target": "nbd://db1:99", "exports": []}


def test_check_json_is_the_contracts() -> None:
    found = render.checks_document([(TARGET.uri, Checked(1.5, 0.25, None))])
    assert list(found) == CHECK_KEYS
    assert found == {
        "target": "nbd://db1:99/disk",
        "ok": True,
        "handshake_ms": 1.5,
        "read_ms": 0.25,
        "error": None,
    }


def test_check_json_of_a_failure_tells_it() -> None:
    failed = Checked(1.5, None, Refused("nbd://db1", "no", "be nice"))
    found = render.checks_document([(TARGET.uri, failed)])
    assert list(found) == CHECK_KEYS
    error = {"kind": "refused", "exit_code": 4, "thing": "nbd://db1", "message": "nbd://db1: no", "hint": "be nice"}
    assert (found["ok"], found["read_ms"], found["error"]) == (False, None, {**error, "users": []})


def test_json_keeps_hostile_text_whole_and_is_ascii() -> None:
    text = render.list_json(TARGET.server, [Listed(HOSTILE, HOSTILE, 1)])
    assert text.isascii()
    assert all(line.isprintable() for line in text.split("\n"))
    assert json.loads(text)["exports"][0] == {"name": HOSTILE, "description": HOSTILE, "size": 1}


AWAY = replace(
    ATTACHED, state="reconnecting",
    trouble={"since": "2026-01-02T03:04:05Z", "next_try": "2026-01-02T03:04:07Z", "error": "nbd://db1: no\x1b"},
)  # fmt: skip


@pytest.mark.parametrize("trouble", [AWAY.trouble, {"since": "2026-01-02T03:04:05Z", "next_try": None, "error": ""}])
def test_status_json_tells_trouble_where_there_is_some(trouble: dict[str, str | None]) -> None:
    found = json.loads(status_json([ATTACHED, replace(AWAY, trouble=trouble)]))
    assert [list(one) for one in found] == [STATUS_KEYS, [*STATUS_KEYS, "trouble"]]
    assert list(found[1]["trouble"]) == ["since", "next_try", "error"]
    assert found[1]["trouble"] == trouble
    assert json.loads(render.as_json(render.status_object(replace(AWAY, trouble=trouble)))) == found[1]


# -- tables and lines --------------------------------------------------------------------------------------------------


def test_table_cuts_the_wider_of_the_last_two_columns_only() -> None:
    rows = [("A" * 30, "B" * 10, "C" * 60), ("a", "b", "c")]
    lines = render.table(rows, 80).splitlines()
    assert lines == ["A" * 30 + "  " + "B" * 10 + "  " + "C" * 35 + "~", "a" + " " * 31 + "b" + " " * 11 + "c"]


def test_list_table_keeps_names_whole() -> None:
    """Users copy them; a description may be as long as it is."""
    name = "n" * 100
    found = [Listed("", "", None), Listed(name, "of all", 1 << 20), Listed(HOSTILE, HOSTILE, 0)]
    lines = render.list_table(found).split("\n")
    assert len(lines) == 4
    assert lines[0].split() == ["NAME", "SIZE", "DESCRIPTION"]
    assert lines[1].split() == ["''", "-", "-"]
    assert lines[2].split("  ") == [name, "1 MiB", "of all"]
    assert all(line.isprintable() for line in lines)


def test_list_table_of_an_empty_server_is_its_head() -> None:
    assert render.list_table([]) == "NAME  SIZE  DESCRIPTION"


def test_info_lines() -> None:
    assert render.info_lines(TARGET.uri, Inspected(EXPORT, ("TLSv1.3", "TLS_AES_256_GCM_SHA384"))).splitlines() == [
        "target:      nbd://db1:99/disk",
        "export:      disk",
        "description: of all",
        "size:        1099511627776 (1 TiB)",
        "access:      read-only",
        "flags:       has_flags, read_only, send_flush, can_multi_conn",
        "block size:  minimum 512, preferred 4096, maximum 33554432",
        "protocol:    newstyle-fixed",
        "tls:         TLSv1.3 TLS_AES_256_GCM_SHA384",
    ]


LOOK = " (of this look, which is read-only)"


@pytest.mark.parametrize(("writable", "access", "more"), [(True, "read-write", LOOK), (False, "read-only", "")])
def test_info_lines_of_an_image_tell_which_flags_are_of_the_look(writable: bool, access: str, more: str) -> None:
    image = Image("/srv/disk.qcow2", "qcow2", "1:2", writable=writable)
    lines = render.info_lines("/srv/disk.qcow2", Inspected(EXPORT, None), image=image).splitlines()
    assert f"access:      {access}" in lines
    assert f"flags:       has_flags, read_only, send_flush, can_multi_conn{more}" in lines


def test_info_lines_when_little_is_known() -> None:
    assert render.info_lines("nbd://db1", Inspected(Export("", 0, 0, "oldstyle"), None), EMPTY).splitlines() == [
        "target:      nbd://db1",
        "export:      '' (the default export)",
        "description: -",
        "size:        0 (0 B)",
        "access:      read-write",
        "flags:       -",
        "block size:  not announced",
        "protocol:    oldstyle",
        "tls:         no",
        "cannot be attached: the export has 0 bytes, less than one block of 512",
    ]


def test_info_lines_tell_of_a_lack_of_flush() -> None:
    export = Export("disk", 1 << 20, 1, "newstyle-fixed")
    lines = render.info_lines(TARGET.uri, Inspected(export, None), lacks=["", lack_of_flush(export)]).splitlines()
    assert lines[-1] == (
        "note:        the server offers no flush: data that was synced may be lost if the server's machine crashes "
        "(nbd-server offers it with flush = true)"
    )


def test_info_lines_of_a_hostile_server_are_nine_printable_ones() -> None:
    lines = render.info_lines(TARGET.uri, Inspected(replace(EXPORT, name=HOSTILE, description=HOSTILE), None)).split(
        "\n"
    )
    assert len(lines) == 9
    assert all(line.isprintable() for line in lines)


def test_check_line() -> None:
    assert render.check_line(TARGET.uri, Checked(1.5, 0.25, None)) == (
        "nbd://db1:99/disk: ok, handshake 1.5 ms, read 0.25 ms"
    )
