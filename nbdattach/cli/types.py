# SPDX-License-Identifier: GPL-2.0-or-later
"""Parses the text of arguments and options: types for click, targets, devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from nbdattach.device import Device
    from nbdattach.protocol.target import Target


class WrongValue(click.BadParameter):
    """`example` is a value to type in the place of the wrong one."""

    example = ""


class Value(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.4
    """Parses text with a function of `option_values`. `words` are the values that a shell can offer."""

    def __init__(self, name: str, parse: Callable[[str], Any], words: Sequence[str] = ()) -> None:
        self.name = name
        self._parse = parse
        self._words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value  # a default
        try:
            return self._parse(value)
        except ValueError as error:
            wrong = WrongValue(str(error), ctx, param)
            wrong.example = getattr(error, "example", "")
            raise wrong from None

    def shell_complete(self, _ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(word) for word in self._words if word.startswith(incomplete)]


def seconds() -> Value:
    def parse(text: str) -> float:
        from nbdattach import option_values

        return option_values.seconds(text)

    return Value("TIME", parse)


def word_of(words: Sequence[str]) -> Value:
    """One of the words, in upper or lower case."""

    def parse(text: str) -> str:
        from nbdattach import option_values

        return option_values.one_of(text, words)

    return Value("WORD", parse, words)


TABLE = "/etc/nbdtab"


def target_of(text: str, export: str | None, trust: dict[str, Any] | None = None) -> Target:
    from nbdattach.protocol.target import parse_target, with_tls

    return with_tls(parse_target(text, export), **trust or {})


def device_of(text: str) -> Device:
    """By its name."""
    from nbdattach.device import parse_device

    return parse_device(text)


def device_at(text: str) -> Device:
    """By its name, or any path that leads to it."""
    from nbdattach.attached import names

    return names.device_at(text)


def is_device(text: str) -> bool:
    from nbdattach.errors import Malformed

    try:
        device_of(text)
    except Malformed:
        return False
    return True
