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
from dataclasses import fields
from types import UnionType
from typing import Any, TypeVar

T = TypeVar("T")

# A file or message of ours has about 1 KiB; a message has at most 64 KiB.
MAX_TEXT = 1 << 20
# Python's parser calls itself for each level. In a thread of the monitor, which has a stack of 256 KiB, Python 3.13
# crashes at 1200 levels, and the monitor with it. Our own messages have up to four brackets.
_MAX_BRACKETS = 64
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKET = re.compile(r"[\[{]")
# Surrogates other than those that os.fsdecode makes of bytes that are not UTF-8: they cannot be encoded.
_LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
# The kernel's sizes and numbers of processes are less.
_MAX_NUMBER = 1 << 63


def parsed(text: str | bytes) -> Any:
    """Raises ValueError."""
    if isinstance(text, bytes):
        text = text.decode()
    if len(text) > MAX_TEXT:
        raise ValueError(f"{len(text)} characters")
    if len(_BRACKET.findall(_STRING.sub("", text))) > _MAX_BRACKETS:
        raise ValueError("too many brackets")
    return json.loads(text)


def made_of(kind: type[T], content: object, strict: bool = False) -> T:
    """A dataclass of the fields in `content`. Raises ValueError, also if a field without a default is missing.

    A newer version may have more fields; they are left out, or refused if `strict`.
    """
    if not isinstance(content, dict):
        raise ValueError(f"not {kind.__name__}: {type(content).__name__}")
    types = _types(kind)  # type: ignore[arg-type] # mypy: a class may be no key
    known = [name for name in types if name in content]
    if strict and len(known) < len(content):
        raise ValueError(f"unknown fields of {kind.__name__}")
    wrong = [name for name in known if not _is_of(content[name], types[name])]
    if wrong:
        raise ValueError(f"wrong type of {', '.join(wrong)} in {kind.__name__}")
    try:
        return kind(**{name: content[name] for name in known})
    except TypeError as error:
        raise ValueError(str(error)) from None


@functools.cache
def _types(kind: type[Any]) -> dict[str, Any]:
    """The types by field name, in order. Cached, because Python evaluates each annotation for that."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _is_of(value: object, kind: Any) -> bool:
    """Whether a value from JSON is of that type. None of our numbers is negative, infinite or NaN."""
    if isinstance(kind, UnionType):
        return any(_is_of(value, one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is dict:
        of_keys, of_values = typing.get_args(kind)
        return isinstance(value, dict) and all(_is_of(k, of_keys) and _is_of(v, of_values) for k, v in value.items())
    if kind is int:
        return type(value) is int and 0 <= value < _MAX_NUMBER
    if kind is float:
        return type(value) in (int, float) and 0 <= value < math.inf  # type: ignore[operator]
    return type(value) is kind and not (kind is str and _LONE.search(str(value)))
