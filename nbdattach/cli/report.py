# SPDX-License-Identifier: GPL-2.0-or-later
"""A command's messages to the user beside its result: errors, warnings, progress, on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from nbdattach.cli.failure import Failures
from nbdattach.errors import DeviceInUse, NbdattachError
from nbdattach.reporter import Reporter

_D = TypeVar("_D")


def say(line: str) -> None:
    click.echo(f"nbdattach: {line}", err=True)


def say_error(error: NbdattachError) -> None:
    say(str(error))
    for line in error.users if isinstance(error, DeviceInUse) else ():
        click.echo(f"  {line}", err=True)
    click.echo(f"({error.hint})", err=True)


def _is_debug() -> bool:
    ctx = click.get_current_context(silent=True)
    return bool(ctx and ctx.find_root().obj)


def trace() -> Callable[[str], None]:
    if not _is_debug():
        return lambda _: None
    return lambda line: say(f"debug: {line}")


def warn_of_no_verify(where: str = "") -> None:
    cause = "the server is not verified (--tls-no-verify): an attacker on the network path can read and change all data"
    say(f"{where}warning: {cause}")


class OnTerminal(Reporter):
    """Notes for standard error. On a terminal it shows how long a flush takes, in one line that is overwritten."""

    def __init__(self, device: str = "") -> None:
        self._device = device
        self._trace = trace()

    def say(self, line: str) -> None:
        say(line)

    def progress(self, seconds: float) -> None:
        if seconds >= 1:
            say_over(f"nbdattach: {self._device}: flushing to the server, {seconds:.0f} s")

    def trace(self, step: str) -> None:
        self._trace(step)


def say_over(line: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{line}\x1b[K", err=True, nl=False)


def terminal_width() -> int:
    """Columns of the terminal that standard output is; 0 if it is none, or does not tell."""
    if not sys.stdout.isatty():
        return 0
    try:
        return int(os.environ["COLUMNS"])
    except (KeyError, ValueError):
        pass
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except OSError:
        return 0


def each(
    devices: Sequence[_D],
    do: Callable[[_D], None],
    failures: Sequence[NbdattachError] = (),
    results: list[Any] | None = None,
) -> None:
    """Does all of them, even if one fails; the first failure decides the exit code. `results`: see `Failures`."""
    failures = [*failures]
    for device in devices:
        try:
            do(device)
        except NbdattachError as error:
            failures.append(error)
    if failures:
        raise Failures(failures, results)
