# SPDX-License-Identifier: GPL-2.0-or-later
"""Splits a command line by the options of another program into options and operands. For errors only.

Words are read as getopt_long(3) does: values attached or not, flags in one word, operands anywhere. An option of ours
may be mixed in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import click

from nbdattach.cli import migration
from nbdattach.cli.migration import Other, Program
from nbdattach.cli.parameters import options_by_name
from nbdattach.cli.types import is_device
from nbdattach.immutable import immutable


class Unreadable(Exception):
    """The program has no such options, or they lack a value."""


@immutable
class Taken:
    """An option as it was typed. `other` is None for an option of ours; `value` is None for a flag."""

    other: Other | None
    name: str
    value: str | None = None

    @property
    def words(self) -> list[str]:
        if self.value is None:
            return [self.name]
        is_theirs = self.other and self.name.startswith("--")
        return [f"{self.name}={self.value}"] if is_theirs else [self.name, self.value]

    @property
    def ours(self) -> list[str]:
        """The words of our option, [] if the other program's is none of ours."""
        if self.other is None:
            return self.words
        return [_filled(word, self.value) for word in self.other.ours.split()] if self.other.kind == "option" else []


@immutable
class Line:
    """What was read."""

    options: tuple[Taken, ...]
    operands: tuple[str, ...]

    def of(self, kind: str) -> list[Taken]:
        """The options of other programs that are of this kind, see `Other`."""
        return [taken for taken in self.options if taken.other and taken.other.kind == kind]


def read(words: Sequence[str], program: Program, own: click.Command | None, *, own_first: bool = False) -> Line:
    """Reads the words. `own`: a command of ours, if its options may be there. Raises `Unreadable`."""
    theirs = [_names(program), _names(migration.HABITS)]
    known: list[Mapping[str, Other | click.Option]] = [*theirs]
    if own:
        known.insert(0 if own_first else len(known), options_by_name(own))
    options: list[Taken] = []
    operands: list[str] = []
    queue = [*words]
    while queue:
        word = queue.pop(0)
        old = re.fullmatch("(bs|timeout)=(.+)", word) if program.one_dash else None
        if word == "--":
            operands += queue
            break
        if old:
            queue[:0] = ["-block-size" if old[1] == "bs" else "-timeout", old[2]]
        elif not word.startswith("-") or word == "-":
            operands.append(word)
        else:
            # -readonly is no -r: a long name with one dash goes before short ones.
            whole = word.partition("=")[0]
            has_one_dash = word[1:2] != "-" and len(whole) > 2
            is_long = has_one_dash and whole in theirs[0]
            if has_one_dash and not is_long and any(f"-{whole}" in names for names in known):
                word = f"-{word}"
            elif has_one_dash and not is_long and whole in _names(migration.NBD_CLIENT):
                raise Unreadable(word)  # -nofork is no -n -o fork
            options.append(_option(word, theirs[:1] if is_long else known, queue, operands))
    return Line(tuple(options), tuple(operands))


def _option(
    word: str, known: Sequence[Mapping[str, Other | click.Option]], queue: list[str], operands: list[str]
) -> Taken:
    """Takes the option, and what belongs to it from the queue."""
    for names in known:
        for name, value, rest in _splits(word):
            found = names.get(name)
            if found is None:
                continue
            takes_value = bool(found.value) if isinstance(found, Other) else not (found.is_flag or found.count)
            other = found if isinstance(found, Other) else None
            if rest and takes_value:
                value, rest = rest, ""
            if not takes_value and value is not None:
                if other is None or other.kind != "command":
                    continue
                operands.insert(0, value)  # --disconnect=/dev/nbd0
                value = None
            if takes_value and value is None:
                if not queue or (queue[0].startswith("-") and len(queue[0]) > 1):
                    continue
                value = queue.pop(0)
            if other and value is not None and not _fits(other, value):
                continue
            queue[:0] = [f"-{rest}"] if rest else []
            return Taken(other, name, value)
    raise Unreadable(word)


def _fits(other: Other, value: str) -> bool:
    """Whether the program would take it. Values that become those of an option of ours are parsed as such."""
    if other.kind == "option":
        return True
    if other.value in ("N", "NUM", "SECONDS", "PORT"):
        return value.isdigit()
    if other.value == "MODE" and other.kind == "left out":  # of --multi-conn
        return value in ("auto", "on", "off")
    if other.value == "DEVICE":
        return "/" in value or is_device(value)
    return not (other.kind == "target" and other.value == "PATH") or value.startswith("/")


def _splits(word: str) -> list[tuple[str, str | None, str]]:
    """Name, value, and further letters, in each way that the word can be split."""
    name, is_assigned, value = word.partition("=")
    ways = [(name, value if is_assigned else None, "")]
    if word[1] != "-" and len(word) > 2:
        ways.append((word[:2], None, word[2:]))
    return ways


def _names(program: Program) -> dict[str, Other]:
    found = {name: other for other in program.options for name in other.names.split()}
    if program.one_dash:
        found.update({f"-{name}": other for name, other in found.items() if len(name) > 2})
    return found


def _filled(word: str, value: str | None) -> str:
    """The word of an option of ours with the user's value in the place of the name of it."""
    return word if value is None else re.sub("[A-Z]+$", lambda _: value, word)
