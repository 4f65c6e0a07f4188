# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads JSON that another process of ours wrote: state files, and messages between commands, monitor and relay.

The file may be broken, and the process may be of another version, so nothing is trusted: a value of the wrong type is
an error here, and not later in a thread of the monitor or in the status of another device.
"""

from __future__ import annotations

import functools
import json
import math
import re
import typing
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar

T = TypeVar("T")

# A file or message of ours has about 1 KiB; a message has at most 64 KiB.
MAX_TEXT = 1 << 20
# Python's parser calls itself for each level. In a thread of the monitor, which has a stack of 256 KiB, Python 3.13
# crashes at 1200 levels, and the monitor with it. Our own messages and files have up to six.
_MAX_DEPTH = 64
# Compiled when they are used: few texts need it.
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_BRACKET = r"[\[{\]}]"
# Surrogates other than those that os.fsdecode makes of bytes that are not UTF-8: they cannot be encoded.
_LONE = "[\ud800-\udc7f\udd00-\udfff]"
# A server's size has 64 bits; the kernel's sizes and numbers of processes have less.
_MAX_NUMBER = 1 << 64


def parsed(text: str | bytes) -> Any:
    """Raises ValueError."""
    if isinstance(text, bytes):
        text = text.decode()
    if len(text) > MAX_TEXT:
        raise ValueError(f"{len(text)} characters")
    if text.count("[") + text.count("{") > _MAX_DEPTH and _depth(text) > _MAX_DEPTH:
        raise ValueError("too many brackets in each other")
    return json.loads(text)


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(_BRACKET, re.sub(_STRING, "", text, flags=re.DOTALL)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def made_of(kind: type[T], content: object, strict: bool = False) -> T:
    """A dataclass of the fields in `content`. Raises ValueError, also if a field without a default is missing.

    A newer version may have more fields, here or in a dataclass inside; they are left out, or refused if `strict`.
    """
    if not isinstance(content, dict):
        raise ValueError(f"not {kind.__name__}: {type(content).__name__}")
    types = _types(kind)  # type: ignore[arg-type] # mypy: a class may be no key
    known = [name for name in types if name in content]
    if strict and len(known) < len(content):
        raise ValueError(f"unknown fields of {kind.__name__}")
    values = {name: value_of(types[name], content[name], f"{name} in {kind.__name__}", strict) for name in known}
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(str(error)) from None


@functools.cache
def _types(kind: type[Any]) -> dict[str, Any]:
    """The types by field name, in order. Cached, because Python evaluates each annotation for that."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def value_of(kind: Any, value: object, name: str, strict: bool = False) -> Any:
    """`value` from JSON as that type. Raises ValueError, which calls it `name`.

    None of our numbers is negative, infinite or NaN. JSON has a list for a tuple, and an object for a dataclass.
    """
    if isinstance(kind, UnionType):
        return _value_of_one(typing.get_args(kind), value, name, strict)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict and isinstance(value, dict):
        return {value_of(inner[0], key, name): value_of(inner[1], one, name, strict) for key, one in value.items()}
    if origin is tuple and isinstance(value, list):
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        if len(kinds) == len(value):
            return tuple(value_of(one, part, name, strict) for one, part in zip(kinds, value, strict=True))
    elif is_dataclass(kind):
        return made_of(typing.cast("type[Any]", kind), value, strict)
    elif _is_of(value, kind):
        return value
    raise ValueError(f"wrong type of {name}")


def _value_of_one(kinds: tuple[Any, ...], value: object, name: str, strict: bool) -> Any:
    """As the first of these types that fits; if none does, the error is that of the first."""
    failures: list[ValueError] = []
    for kind in kinds:
        try:
            return value_of(kind, value, name, strict)
        except ValueError as failure:
            failures.append(failure)
    raise failures[0]


def _is_of(value: object, kind: Any) -> bool:
    if kind is int:
        return type(value) is int and 0 <= value < _MAX_NUMBER
    if kind is float:
        return type(value) in (int, float) and 0 <= value < math.inf  # type: ignore[operator]
    return kind is object or (type(value) is kind and not (kind is str and _has_lone(str(value))))


def _has_lone(text: str) -> bool:
    return not text.isascii() and bool(re.search(_LONE, text))
