# SPDX-License-Identifier: GPL-2.0-or-later
"""Usage errors in our own words: those of click differ from one version to the next.

`Command` and `Group` read a command line as click does, and word its mistakes. Each error names its command.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import click

from nbdattach.cli.parameters import MadeLater
from nbdattach.cli.types import WrongValue

_WORDS = "nbdattach.words"  # in click's meta: the words of the command line


class NoCommand(click.UsageError):
    """No command was named. The message is the help: it lists the commands."""

    def __init__(self, ctx: click.Context) -> None:
        super().__init__(ctx.get_help(), ctx)


class NoSuchName(click.UsageError):
    """A command or option that does not exist. `similar` are existing names that may be meant; `advice` may be ""."""

    def __init__(self, kind: str, name: str, known: Iterable[str], ctx: click.Context) -> None:
        from nbdattach.cli import other_names

        super().__init__(f"No such {kind} {name!r}.", ctx)
        self.advice = other_names.advice(name, ctx) if kind == "option" else ""
        self.similar = other_names.similar(kind, name, [*known]) if self.advice != other_names.BEHIND else []


class BadValue(click.UsageError):
    """An invalid value. `correct` is the option with a valid one, "" if we know none."""

    def __init__(self, error: click.BadParameter, ctx: click.Context) -> None:
        super().__init__(_wrong_value(error), ctx)
        self.correct = ""
        if isinstance(error, WrongValue) and isinstance(error.param, click.Option) and error.example:
            self.correct = f"{error.param.opts[-1]} {error.example}"


class _OwnWords(MadeLater):
    """Base class of commands and of the group."""

    def get_help_option_names(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as click has it
        """In this order; before 8.5, click keeps them in a set."""
        return ["-h", "--help"]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = [*args]  # click empties the list
        may_have_more, ctx.allow_extra_args = ctx.allow_extra_args, True
        if any(word.startswith("[") for word in args) and not ctx.resilient_parsing:
            from nbdattach.own_server.source import collapsed

            args = collapsed(args)
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from nbdattach.cli.corrected import misread

            name = misread(error.option_name, words, self._long_options(ctx))
            raise NoSuchName("option", name, self._long_options(ctx), ctx) from None
        except click.BadOptionUsage as error:
            raise click.UsageError(self._wrong_use(ctx, error.option_name), ctx) from None
        except click.BadParameter as error:  # click.MissingParameter, too
            raise self._bad_parameter(error, ctx, words) from None
        if rest and not may_have_more and not ctx.resilient_parsing:
            raise click.UsageError(f"Got unexpected extra argument{'s'[: len(rest) > 1]} ({' '.join(rest)})", ctx)
        return rest

    def _bad_parameter(self, error: click.BadParameter, ctx: click.Context, words: list[str]) -> click.UsageError:
        """-block-size 512 is no -b with the value lock-size."""
        if isinstance(error.param, click.Option):
            from nbdattach.cli.corrected import misread

            for name in error.param.opts:
                begun = [word for word in words if word.startswith(name)]
                whole = misread(name, begun, self._long_options(ctx)) if len(name) == 2 else name
                if whole != name:
                    return NoSuchName("option", whole, self._long_options(ctx), ctx)
        return BadValue(error, ctx)

    def _long_options(self, ctx: click.Context) -> list[str]:
        return [name for param in self.get_params(ctx) for name in param.opts if name.startswith("--")]

    def _wrong_use(self, ctx: click.Context, name: str) -> str:
        flags = {flag for param in self.get_params(ctx) if getattr(param, "is_flag", False) for flag in param.opts}
        return f"Option {name!r} " + ("does not take a value." if name in flags else "requires an argument.")


class Command(_OwnWords):
    """One command."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from nbdattach.cli.groups import grouped

        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        records = [(option.opts[-1].lstrip("-"), option.get_help_record(ctx)) for option in options]
        for title, rows in grouped((name, record) for name, record in records if record):
            with formatter.section(title):
                formatter.write_dl(rows)


def command(name: str | None = None) -> Callable[[Callable[..., Any]], Command]:
    """As click.command, for a `Command`."""
    return click.command(name, cls=Command)


class OnDemand(MutableMapping[str, click.Command]):
    """Commands by name, each imported when it is used. `places`: module of this room and function of each."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = dict(places)
        self._made: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._made:
            module, _, function = self._places[name].partition(".")
            made: click.Command = getattr(importlib.import_module(f"nbdattach.cli.{module}"), function)
            self._made[name] = made
        return self._made[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._places[name] = ""
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._places[name]
        self._made.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Group(_OwnWords, click.Group):
    """All commands."""

    command_class = Command

    def __init__(self, *args: Any, **options: Any) -> None:
        # click calls the group without a command, too; else it would answer itself, with exit code 0 or 2.
        ours = {"invoke_without_command": True, "subcommand_metavar": "COMMAND [ARGS]..."}
        super().__init__(*args, **{**options, **ours})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_WORDS] = [*args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not ctx.resilient_parsing:
            raise NoSuchName("command", args[0], self.commands, ctx)
        return super().resolve_command(ctx, args)


def require_command(ctx: click.Context) -> None:
    """Raises `NoCommand` if the command line names none. For the group's function: click calls it before a command."""
    if ctx.invoked_subcommand is None:
        raise NoCommand(ctx)


def _wrong_value(error: click.BadParameter) -> str:
    param = error.param
    if param is None:
        return error.message
    names = param.opts if isinstance(param, click.Option) else [param.human_readable_name]
    if isinstance(error, click.MissingParameter):
        return f"Missing {param.param_type_name} {names[-1]!r}."
    return f"Invalid value for {' / '.join(map(repr, names))}: {error.message}"


def hint(error: click.UsageError) -> str:
    """The hint: the corrected command if we know it, or a command that shows more."""
    command = "" if isinstance(error, BadValue) else corrected(error.ctx)
    if command:
        return command
    see = f"see {path(error)} --help"
    if isinstance(error, NoSuchName) and error.advice == "nbdattach --help":
        return error.advice
    if isinstance(error, BadValue) and error.correct:
        return f"try {error.correct}; {see}"
    if not isinstance(error, NoSuchName):
        return see
    advice = f"{error.advice}; {see}" if error.advice else see
    if not error.similar:
        return advice
    *more, last = error.similar
    return f"did you mean {', '.join(more) + ' or ' if more else ''}{last}? {advice}"


def corrected(ctx: click.Context | None) -> str:
    """The command line that was meant, in place of one that is wrong; "" if we do not know it."""
    words = ctx.meta.get(_WORDS) if ctx else None
    if not ctx or not words:
        return ""
    from nbdattach.cli import corrected as by_other_names

    group = ctx.find_root().command
    return by_other_names.corrected(words, group) if isinstance(group, click.Group) else ""


def path(error: click.UsageError) -> str:
    """The command that was used wrongly: "nbdattach connect"."""
    return error.ctx.command_path if error.ctx else "nbdattach"
