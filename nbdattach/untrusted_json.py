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
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeAlias, TypeVar

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
    readers = _readers(kind)  # type: ignore[arg-type] # mypy: a class may be no key
    if strict and not content.keys() <= readers.keys():
        raise ValueError(f"unknown fields of {kind.__name__}")
    values = {name: read(content[name], label, strict) for name, (read, label) in readers.items() if name in content}
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(str(error)) from None


def value_of(kind: Any, value: object, name: str) -> Any:
    """`value` from JSON as that type. Raises ValueError, which calls it `name`.

    None of our numbers is negative, infinite or NaN. JSON has a list for a tuple, and an object for a dataclass.
    """
    return _reader(kind)(value, name, False)


# Takes a value, its name in an error, and whether fields of a newer version are refused.
_Reader: TypeAlias = Callable[[Any, str, bool], Any]


@functools.cache
def _readers(kind: type[Any]) -> dict[str, tuple[_Reader, str]]:
    """By field, in order, with its name in an error."""
    hints = typing.get_type_hints(kind)
    names = (field.name for field in fields(kind))
    return {name: (_reader(hints[name]), f"{name} in {kind.__name__}") for name in names}


@functools.cache
def _reader(kind: Any) -> _Reader:
    """Made once, because `status` reads hundreds of records, and to look into a type takes longer than to read one."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, UnionType):
        return functools.partial(_one_of, [*map(_reader, inner)], NoneType in inner)
    if origin is dict:
        return functools.partial(_dict_of, _reader(inner[0]), _reader(inner[1]))
    if origin is tuple and inner[-1] is ...:
        return functools.partial(_tuple_of_any_length, _reader(inner[0]))
    if origin is tuple:
        return functools.partial(_tuple_of, [*map(_reader, inner)])
    if is_dataclass(kind):
        return lambda value, _name, strict: made_of(typing.cast("type[Any]", kind), value, strict)
    return functools.partial(_plain, kind)


def _one_of(readers: list[_Reader], optional: bool, value: Any, name: str, strict: bool) -> Any:
    """As the first of these types that fits; if none does, the error is that of the first."""
    if optional and value is None:
        return None
    failures: list[ValueError] = []
    for read in readers:
        try:
            return read(value, name, strict)
        except ValueError as failure:
            failures.append(failure)
    raise failures[0]


def _dict_of(read_key: _Reader, read: _Reader, value: Any, name: str, strict: bool) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise _wrong(name)
    return {read_key(key, name, False): read(part, name, strict) for key, part in value.items()}


def _tuple_of_any_length(read: _Reader, value: Any, name: str, strict: bool) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(name)
    return tuple(read(part, name, strict) for part in value)


def _tuple_of(readers: list[_Reader], value: Any, name: str, strict: bool) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) != len(readers):
        raise _wrong(name)
    return tuple(read(part, name, strict) for read, part in zip(readers, value, strict=True))


def _plain(kind: Any, value: Any, name: str, _strict: bool) -> Any:
    if not _is_of(value, kind):
        raise _wrong(name)
    return value


def _wrong(name: str) -> ValueError:
    return ValueError(f"wrong type of {name}")


def _is_of(value: object, kind: Any) -> bool:
    if kind is int:
        return type(value) is int and 0 <= value < _MAX_NUMBER
    if kind is float:
        return type(value) in (int, float) and 0 <= value < math.inf  # type: ignore[operator]
    return kind is object or (type(value) is kind and not (kind is str and _has_lone(str(value))))


def _has_lone(text: str) -> bool:
    return not text.isascii() and bool(re.search(_LONE, text))
