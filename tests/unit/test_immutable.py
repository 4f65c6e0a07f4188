# SPDX-License-Identifier: GPL-2.0-or-later
"""Classes of facts: in all that others see they are frozen dataclasses."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace
from typing import Any

import pytest

from nbdattach.immutable import immutable


@immutable
class Point:
    x: int
    y: int = 2
    names: list[str] = field(default_factory=list)
    note: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Plain:
    x: int
    y: int = 2
    names: list[str] = field(default_factory=list)
    note: str = field(default="", compare=False, repr=False)


@immutable(kw_only=True)
class Base:
    a: int = 1


@immutable(kw_only=True)
class Positive(Base):
    b: int = 2

    def __post_init__(self) -> None:
        if self.b < 0:
            raise ValueError(self.b)


@pytest.mark.parametrize("given", [{"x": 1}, {"x": 1, "y": 3}, {"x": 1, "names": ["a"], "note": "n"}])
def test_it_is_made_shown_and_compared_as_a_dataclass(given: dict[str, Any]) -> None:
    ours, theirs = Point(**given), Plain(**given)
    assert asdict(ours) == asdict(theirs)
    assert repr(ours) == repr(theirs).replace("Plain", "Point")
    assert [one.name for one in fields(ours)] == [one.name for one in fields(theirs)]
    assert ours == Point(**given) and ours != Point(x=99)
    others: list[object] = [theirs, 1]
    assert ours not in others
    assert replace(ours, x=7) == Point(**{**given, "x": 7})


def test_arguments_may_have_no_names() -> None:
    assert Point(1, 5) == Point(x=1, y=5)
    match Point(1, 5):
        case Point(x, y):
            assert (x, y) == (1, 5)


@pytest.mark.parametrize(
    ("given", "named", "words"),
    [
        ((), {}, "misses a value for x"),
        ((1,), {"x": 1}, "two values for x"),
        ((1, 2, [], "", 5), {}, "takes 4 positional arguments, 5 were given"),
        ((1,), {"z": 1}, "has no z"),
    ],
)
def test_wrong_arguments_are_named(given: tuple[int, ...], named: dict[str, int], words: str) -> None:
    kind: Any = Point
    with pytest.raises(TypeError, match=f"^Point .*{words}"):
        kind(*given, **named)


def test_it_cannot_be_changed() -> None:
    point: Any = Point(1)
    with pytest.raises(FrozenInstanceError):
        point.x = 2
    with pytest.raises(FrozenInstanceError):
        del point.x
    with pytest.raises((AttributeError, TypeError)):
        point.other = 1
    assert point.x == 1


def test_defaults_are_made_anew() -> None:
    assert Point(1).names is not Point(1).names


def test_equal_ones_have_one_hash() -> None:
    assert len({Base(a=1), Base(), Base(a=2)}) == 2
    assert hash(Base()) == hash(Base(a=1))


def test_a_child_has_the_fields_of_its_base_and_its_own_check() -> None:
    assert (Positive(a=5).a, Positive(a=5).b) == (5, 2)
    assert Positive() != Base()
    with pytest.raises(ValueError, match="-1"):
        Positive(b=-1)
    kind: Any = Positive
    with pytest.raises(TypeError):
        kind(1)


def test_a_method_of_its_own_is_kept() -> None:
    @immutable
    class Named:
        name: str

        def __repr__(self) -> str:
            return self.name

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Named) and self.name.lower() == other.name.lower()

        __hash__ = None  # type: ignore[assignment]

    assert (repr(Named("a")), Named("A") == Named("a")) == ("a", True)
