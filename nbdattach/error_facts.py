# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes an error to another process of ours: its facts as JSON, and the same error made of them again.

After an upgrade, an old process talks to a new one. If the receiver does not know the error's class, it takes the
nearest base class that it knows, or else the class of that exit code. A fact that is missing has its default.
"""

from __future__ import annotations

import contextlib
import typing
from dataclasses import field
from typing import Any

from nbdattach.errors import NbdattachError
from nbdattach.immutable import immutable
from nbdattach.untrusted_json import made_of, value_of

SAME_VERSION = "is it of the same version?"
_MAX_EXIT_CODE = 255


@immutable
class _Facts:
    """`kinds` are the names of the error's class and its bases; `more` are the facts that the class declares."""

    thing: str = "nbdattach"
    cause: str = "it does not say why"
    hint: str = SAME_VERSION
    code: int = NbdattachError.exit_code
    kinds: tuple[str, ...] = ()
    more: dict[str, object] = field(default_factory=dict)


def facts_of(error: NbdattachError, most: int | None = None) -> dict[str, object]:
    """The facts from which `error_of` makes the same error; of a fact that is a list, the `most` first ones."""
    return {
        "thing": error.thing,
        "cause": error.cause,
        "hint": error.hint,
        "code": error.exit_code,
        "kinds": [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, NbdattachError)],
        "more": {name: _shortened(getattr(error, name), most) for name in _declared(type(error))},
    }


def _shortened(value: object, most: int | None) -> object:
    return list(value[:most]) if isinstance(value, tuple) else value


def error_of(content: object) -> NbdattachError:
    """Raises ValueError."""
    facts = made_of(_Facts, content)
    kind = _kind_of(facts)
    error = kind.__new__(kind)  # each class makes its texts in a constructor of its own; these have been made
    NbdattachError.__init__(error, facts.thing, facts.cause, facts.hint)
    for name, type_of in _declared(kind).items():
        with contextlib.suppress(KeyError, ValueError):
            setattr(error, name, value_of(type_of, facts.more[name], name))
    if error.exit_code != facts.code and 0 < facts.code <= _MAX_EXIT_CODE:
        error.exit_code = facts.code
    return error


def _kind_of(facts: _Facts) -> type[NbdattachError]:
    """The exit code decides: scripts rely on it."""
    kinds = [kind for kind in _all_kinds() if kind.exit_code == facts.code]
    for name in facts.kinds:
        for kind in kinds:
            if kind.__name__ == name:
                return kind
    return kinds[0] if kinds else NbdattachError


def _all_kinds() -> list[type[NbdattachError]]:
    """Each class that is loaded in this process; bases before their subclasses."""
    kinds = [NbdattachError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return kinds


def _declared(kind: type[NbdattachError]) -> dict[str, Any]:
    """The types of the facts that the class and its bases declare."""
    return typing.get_type_hints(kind)
