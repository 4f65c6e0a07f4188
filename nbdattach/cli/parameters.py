# SPDX-License-Identifier: GPL-2.0-or-later
"""Arguments and options of commands, which click makes when a command first needs them.

`nbdattach --help` shows those of no command; to make them all would take a tenth of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])
# Of click, such as the value of click.option(...): given a command, it makes a parameter and appends it to `params`.
_Decorator = Callable[[Any], Any]
_NOTED = "_parameters"


def argument(*names: str, **attributes: Any) -> Callable[[_F], _F]:
    """As click.argument."""
    return later(lambda: click.argument(*names, **attributes))


def option(*names: str, **attributes: Any) -> Callable[[_F], _F]:
    """As click.option."""
    return later(lambda: click.option(*names, **attributes))


def later(decorator: Callable[[], _Decorator]) -> Callable[[_F], _F]:
    """Notes for a command's function how to make a parameter. Python applies decorators from the last to the first."""

    def note(function: _F) -> _F:
        function.__dict__.setdefault(_NOTED, []).insert(0, decorator)
        return function

    return note


def options_by_name(command: click.Command) -> dict[str, click.Option]:
    """All options of the command, by each of their names."""
    return {name: param for param in command.params if isinstance(param, click.Option) for name in param.opts}


class MadeLater(click.Command):
    """A command with the parameters that its function notes."""

    _missing: Sequence[Callable[[], _Decorator]] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._missing = getattr(self.callback, _NOTED, ())

    @property
    def params(self) -> list[click.Parameter]:
        missing, self._missing = self._missing, ()  # first, because click's decorators read `params`
        for decorator in missing:
            decorator()(self)
        return self._made

    @params.setter
    def params(self, made: list[click.Parameter]) -> None:
        self._made = made
