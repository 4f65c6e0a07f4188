# SPDX-License-Identifier: GPL-2.0-or-later
"""Classes of facts that do not change once they are made.

A dataclass compiles its methods, six for each class, when its module is imported: 180 of the 550 million instructions
that the imports of connect once took. Here all classes share methods that are compiled once. In all else they are
dataclasses: `dataclasses.field`, `fields`, `replace` and `asdict` know them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform, overload

_T = TypeVar("_T")
_assign = object.__setattr__
_MISSING = dataclasses.MISSING


@overload
def immutable(cls: type[_T]) -> type[_T]: ...


@overload
def immutable(*, kw_only: bool) -> Callable[[type[_T]], type[_T]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def immutable(cls: type[_T] | None = None, *, kw_only: bool = False) -> Any:
    """As `dataclass(frozen=True, slots=True)`."""
    if cls is None:
        return lambda cls: _made(cls, kw_only)
    return _made(cls, kw_only)


def _made(cls: type[Any], kw_only: bool) -> type[Any]:
    methods = (_init, _repr, _eq, _hash, _no_setattr, _no_delattr)
    names = ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__")
    cls.__doc__ = cls.__doc__ or cls.__name__  # else dataclass makes one of the signature, at 5 ms
    own = {name for name in names if name in cls.__dict__ and cls.__dict__[name] is not None}
    made = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True, kw_only=kw_only)(cls)
    for name, method in zip(names, methods, strict=True):
        if name not in own:
            setattr(made, name, method)
    all_fields = dataclasses.fields(made)
    made._fields = tuple((one.name, one.default, one.default_factory) for one in all_fields)
    made._compared = tuple(one.name for one in all_fields if one.compare)
    made._check = getattr(made, "__post_init__", None)
    return made


def _init(self: Any, /, *given: Any, **named: Any) -> None:
    kind = type(self)
    order = kind.__match_args__
    if len(given) > len(order):
        raise TypeError(f"{kind.__name__} takes {len(order)} positional arguments, {len(given)} were given")
    for name, value in zip(order, given, strict=False):
        if name in named:
            raise TypeError(f"{kind.__name__} got two values for {name}")
        named[name] = value
    count = 0
    for name, value, factory in kind._fields:
        if name in named:
            value = named[name]
            count += 1
        elif factory is not _MISSING:
            value = factory()
        elif value is _MISSING:
            raise TypeError(f"{kind.__name__} misses a value for {name}")
        _assign(self, name, value)
    if count < len(named):
        strange = next(name for name in named if all(name != one for one, *_ in kind._fields))
        raise TypeError(f"{kind.__name__} has no {strange}")
    if kind._check:
        kind._check(self)


def _repr(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: Any, other: Any) -> Any:
    if type(other) is not type(self):
        return NotImplemented
    return all(getattr(self, name) == getattr(other, name) for name in self._compared)


def _hash(self: Any) -> int:
    return hash(tuple(getattr(self, name) for name in self._compared))


def _no_setattr(self: Any, name: str, _value: Any) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to {name} of {type(self).__name__}")


def _no_delattr(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete {name} of {type(self).__name__}")


def as_dict(fact: Any) -> dict[str, Any]:
    """As `dataclasses.asdict`, for facts of which all parts are immutable: it does not copy those, which takes long."""
    return {one.name: _plain(getattr(fact, one.name)) for one in dataclasses.fields(fact)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value
