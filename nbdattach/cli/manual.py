# SPDX-License-Identifier: GPL-2.0-or-later
"""The command help: the manual page of a command on a terminal, else the text of its --help."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from nbdattach.cli.options import debug_option
from nbdattach.cli.parameters import argument
from nbdattach.cli.usage import NoSuchName, command

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# man -w only looks for a file.
_SECONDS = 10


def _commands(ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Those that begin with the typed text, for a shell's completion."""
    from click.shell_completion import CompletionItem

    group = ctx.find_root().command
    names = sorted(group.commands) if isinstance(group, click.Group) else []
    return [CompletionItem(name) for name in names if name.startswith(begun)]


@command("help")
@argument("name", required=False, metavar="[COMMAND]", shell_complete=_commands)
@debug_option
@click.pass_context
def help_(ctx: click.Context, name: str | None) -> None:
    """Show the commands, or the manual page of one.

    If there is no terminal, or the page is not installed, it prints the text of COMMAND --help.
    """
    root = ctx.find_root()
    group = root.command
    if name is None or not isinstance(group, click.Group):
        click.echo(root.get_help())
        return
    if name not in group.commands:
        raise NoSuchName("command", name, group.commands, ctx)
    page = _page(name)
    if page:
        sys.stdout.flush()
        os.execvp("man", ["man", page])  # noqa: S606 - no shell is needed
    of = group.commands[name]
    click.echo(of.get_help(click.Context(of, info_name=name, parent=root)))


def _page(name: str) -> str:
    """The installed page for the command: its own one, or that of all commands; "" without one or a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return ""
    from nbdattach.host import programs

    for page in (f"nbdattach-{name}", "nbdattach"):
        try:
            if programs.run("man", "-w", page, seconds=_SECONDS).returncode == 0:
                return page
        except (OSError, TimeoutError):
            return ""
    return ""
