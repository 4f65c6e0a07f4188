# SPDX-License-Identifier: GPL-2.0-or-later
"""Parameters of a command are made once, in order, if a command needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from nbdattach.cli.parameters import argument, later, option
from nbdattach.cli.usage import Command, command


def copy() -> tuple[Command, list[str]]:
    """A command with three parameters, and the names of those that were made."""
    made: list[str] = []

    def third() -> Callable[[Any], Any]:
        made.append("third")
        return click.option("--third", is_flag=True)

    @command("copy")
    @argument("first")
    @option("--second", default="2", show_default=True)
    @later(third)
    def run(first: str, second: str, third: bool) -> None:
        click.echo(f"{first} {second} {third}")

    return run, made


def test_nothing_is_made_before_it_is_read_and_all_once() -> None:
    made_from, made = copy()
    assert made == []
    assert made_from.get_short_help_str() == ""
    assert made == []
    first = made_from.params
    assert [one.name for one in first] == ["first", "second", "third"]
    assert made_from.params is first
    assert made == ["third"]


def test_a_command_line_is_parsed_with_all_of_them() -> None:
    made_from, made = copy()
    with made_from.make_context("copy", ["x", "--third"]) as ctx:
        assert ctx.params == {"first": "x", "second": "2", "third": True}
    assert made == ["third"]


def test_help_has_them_in_the_order_of_the_decorators() -> None:
    made_from, _ = copy()
    with click.Context(made_from, info_name="copy") as ctx:
        text = made_from.get_help(ctx)
    assert text.startswith("Usage: copy [OPTIONS] FIRST")
    assert text.index("--second") < text.index("--third") < text.index("--help")


def test_a_shell_is_offered_them() -> None:
    made_from, _ = copy()
    with click.Context(made_from, info_name="copy") as ctx:
        assert "--second" in [item.value for item in made_from.shell_complete(ctx, "--s")]
