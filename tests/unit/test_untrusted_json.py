# SPDX-License-Identifier: GPL-2.0-or-later
"""JSON of other processes of ours: the values have the right types, or there are none."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdattach import untrusted_json
from nbdattach.attached.state import Record, Trouble
from nbdattach.monitor.control import Request

RECORD = asdict(Record("mine", "nbd://db1/disk", "disk", "netlink", 2, "2026-01-02T03:04:05Z", 4711))
TROUBLE = asdict(Trouble("lost", "2026-01-02T03:04:05Z", None, ""))
DEEP = "[" * 65_000
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@dataclass
class Thing:
    name: str
    size: int = 0
    age: float | None = None
    words: dict[str, str | bool] | None = None


@dataclass
class Box:
    thing: Thing
    spare: Thing | None = None
    labels: tuple[str, ...] = ()
    corners: tuple[str, int] | None = None
    rest: dict[str, object] | None = None


@pytest.mark.parametrize(
    "content",
    [
        {"name": "x"},
        {"name": "\udcff", "size": 1 << 62, "age": 5, "words": {"a": "b", "c": True}},
        {"name": "", "age": 0.5, "words": {}},
    ],
)
def test_what_has_the_right_types_is_made(content: dict[str, Any]) -> None:
    assert untrusted_json.made_of(Thing, content) == Thing(**content)


WRONG: list[object] = [
    None, 5, "name", [], ["name"], {}, {"size": 5},
    {"name": 5}, {"name": None}, {"name": ["x"]}, {"name": "\ud800"},
    {"name": "x", "size": "5"}, {"name": "x", "size": 5.0}, {"name": "x", "size": True}, {"name": "x", "size": -1},
    {"name": "x", "size": 1 << 64}, {"name": "x", "size": None},
    {"name": "x", "age": float("nan")}, {"name": "x", "age": float("inf")}, {"name": "x", "age": -0.5},
    {"name": "x", "age": "1"},
    {"name": "x", "words": []}, {"name": "x", "words": {"a": 5}}, {"name": "x", "words": {"a": None}},
]  # fmt: skip


@pytest.mark.parametrize("content", WRONG, ids=repr)
def test_nothing_is_made_of_a_wrong_type(content: object) -> None:
    with pytest.raises(ValueError, match=r"Thing"):
        untrusted_json.made_of(Thing, content)


@pytest.mark.parametrize(
    ("content", "box"),
    [
        ({"thing": {"name": "x"}}, Box(Thing("x"))),
        ({"thing": {"name": "x"}, "spare": {"name": "y", "size": 5}}, Box(Thing("x"), Thing("y", 5))),
        ({"thing": {"name": "x"}, "spare": None, "labels": ["a", "b"]}, Box(Thing("x"), labels=("a", "b"))),
        ({"thing": {"name": "x"}, "corners": ["a", 5]}, Box(Thing("x"), corners=("a", 5))),
        ({"thing": {"name": "x"}, "rest": {"a": [1], "b": None}}, Box(Thing("x"), rest={"a": [1], "b": None})),
        ({"thing": {"name": "x", "colour": "blue"}}, Box(Thing("x"))),
    ],
)
def test_a_dataclass_in_another_one_is_made(content: dict[str, Any], box: Box) -> None:
    assert untrusted_json.made_of(Box, content) == box


@pytest.mark.parametrize(
    "content",
    [
        {"thing": None}, {"thing": "x"}, {"thing": {}}, {"thing": {"name": 5}}, {"thing": {"name": "x", "size": -1}},
        {"thing": {"name": "x"}, "spare": {"name": 5}}, {"thing": {"name": "x"}, "labels": "ab"},
        {"thing": {"name": "x"}, "labels": ["a", 5]}, {"thing": {"name": "x"}, "labels": None},
        {"thing": {"name": "x"}, "corners": ["a"]}, {"thing": {"name": "x"}, "corners": ["a", 5, 5]},
        {"thing": {"name": "x"}, "rest": []},
    ],
    ids=repr,
)  # fmt: skip
def test_nothing_is_made_where_one_inside_has_a_wrong_type(content: object) -> None:
    with pytest.raises(ValueError, match=r"Thing|Box"):
        untrusted_json.made_of(Box, content)


def test_an_unknown_field_inside_is_refused_where_one_outside_is() -> None:
    with pytest.raises(ValueError, match="unknown fields of Thing"):
        untrusted_json.made_of(Box, {"thing": {"name": "x", "colour": "blue"}}, strict=True)


def test_a_servers_size_of_64_bits_is_a_number() -> None:
    assert untrusted_json.made_of(Thing, {"name": "x", "size": (1 << 64) - 1}).size == (1 << 64) - 1


def test_an_unknown_field_is_left_out_or_refused() -> None:
    content = {"name": "x", "colour": "blue"}
    assert untrusted_json.made_of(Thing, content) == Thing("x")
    with pytest.raises(ValueError, match="unknown fields of Thing"):
        untrusted_json.made_of(Thing, content, strict=True)


def as_json(value: object, other: object) -> str:
    """As JSON has it; of a dataclass the fields that `other` has, too, because unknown ones are left out."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {key: value[key] for key in sorted(value) if key in other}
    return json.dumps(value)


@pytest.mark.parametrize("kind", [Record, Trouble, Request])
@given(data=st.data())
def test_whatever_stands_in_a_field_nothing_but_a_value_error_comes_of_it(
    kind: type[Record | Trouble | Request], data: st.DataObject
) -> None:
    whole = {Record: RECORD, Trouble: TROUBLE, Request: asdict(Request("ping"))}[kind]
    name = data.draw(st.sampled_from(sorted(whole)))
    value = data.draw(VALUES)
    try:
        made = untrusted_json.made_of(kind, untrusted_json.parsed(json.dumps({**whole, name: value})))
    except ValueError:
        return
    assert as_json(asdict(made)[name], value) == as_json(value, asdict(made)[name])


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 9000, "[" * 65 + "]" * 65, "[[]" * 65], ids=len)
def test_what_is_deep_is_refused_before_it_is_parsed(text: str) -> None:
    with pytest.raises(ValueError, match="too many brackets"):
        untrusted_json.parsed(text)


def test_brackets_in_names_are_no_depth() -> None:
    name = '[{"\\' * 999
    assert untrusted_json.parsed(json.dumps({"name": name})) == {"name": name}


def test_what_is_long_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ValueError, match="characters"):
        untrusted_json.parsed('"' + "x" * untrusted_json.MAX_TEXT + '"')


@pytest.mark.parametrize("text", ["", "{", '"', '{"a": "\\', b"\xff", "9" * 5000])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        untrusted_json.parsed(text)


def test_a_deep_message_does_not_crash_a_thread_with_a_small_stack() -> None:
    """Python 3.13's own parser crashes the whole process there: this is the stack of the monitor's threads."""
    code = (
        "import threading, sys; from nbdattach import untrusted_json; threading.stack_size(256 << 10)\n"
        "def parse():\n"
        "    try: untrusted_json.parsed('[' * 65000)\n"
        "    except ValueError: print('refused')\n"
        "thread = threading.Thread(target=parse); thread.start(); thread.join()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr
