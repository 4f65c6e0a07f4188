# SPDX-License-Identifier: GPL-2.0-or-later
"""Advice about a command or an option that does not exist, or that only other commands have. For errors only.

It is for words that `corrected` cannot make a command of, because operands are missing or wrong, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import click

from nbdattach.cli import migration
from nbdattach.cli.migration import Other
from nbdattach.cli.parameters import options_by_name

# The advice for an option before the command, which belongs to a command.
BEHIND = "write it behind the command"
# Commands for a device that keeps the options of connect.
_KEEPING = ("reconnect", "resize")
# How alike a name must be to one of ours to be a mistyped one; less than that misleads (--kill is not --all).
_ALIKE = 0.7


def similar(kind: str, name: str, known: Sequence[str]) -> list[str]:
    """Names that may be meant, the likeliest first."""
    if kind == "command":
        other = migration.COMMANDS.get(name)
        return [other] if other else get_close_matches(name.lower(), known)
    for exact in (f"-{name}", name.lower()):
        if exact in known:
            return [exact]
    theirs = _theirs(name)
    ours = [other.ours.split()[0] for other in theirs if other.kind == "option"]
    fit = [word for word in ours if word in known]
    return [*dict.fromkeys(fit)] if fit or theirs else _alike(name.lower(), known)


def _alike(name: str, known: Sequence[str]) -> list[str]:
    """Long options that are alike, or of which one is a part. Dashes do not count: with them, short names are alike."""
    bare = name.strip("-")
    words = {word.removeprefix("--"): word for word in known}
    alike = get_close_matches(bare, words, cutoff=_ALIKE)
    for word in words if len(bare) > 2 else ():
        if word.startswith(bare) or bare.startswith(word if len(word) > 5 else f"{word}-") or bare.endswith(f"-{word}"):
            alike.append(word)
    return [words[word] for word in dict.fromkeys(alike)][:3]


def advice(name: str, ctx: click.Context) -> str:
    """About an option that this command does not have: the commands that have it, or how to do without it."""
    group = ctx.find_root().command
    commands = group.commands if isinstance(group, click.Group) else {}
    ours = {of: options_by_name(commands[of]) for of in sorted(commands)}
    # "--all" is losetup's, too, but who types it here means that of a command of ours.
    theirs = [] if any(name in options for options in ours.values() if name.startswith("--")) else _theirs(name)
    if ctx.parent and ctx.info_name != "connect":
        theirs = [other for other in theirs if other.kind != "in brackets"] or theirs
    meanings = {other.ours: other for other in theirs}
    if len(meanings) == 2 and all(other.kind == "command" for other in theirs):
        return " or ".join(f"nbdattach {each}" for each in meanings)
    is_clear = len(meanings) == 1
    for other in theirs if is_clear else ():
        if other.kind == "command":
            return f"nbdattach {other.ours}"
        if other.kind == "target":
            return "it is part of the TARGET: HOST:PORT, or the path of a socket"
        if other.kind == "in brackets":
            return "write it in the command of a server: [ qemu-nbd -t -e 0 OPTION disk.img ]"
        if other.kind == "left out":
            return other.why if other.needed else f"leave it out: {other.why}"
    if {f"-{name}", *(of.split()[0] for of in meanings if of)} & {*options_by_name(ctx.command)}:
        return ""  # `similar` names it
    # A letter that means something else to each program is only looked for as it was typed.
    names = {name, f"-{name}", *(other.ours.split()[0] for other in theirs if other.kind == "option" and is_clear)}
    having = [of for of, options in ours.items() if names & {*options}]
    if not having or len(having) == len(ours):
        return ""
    if ctx.parent is None:
        return BEHIND
    *most, last = having
    found = f"{', '.join(most)} and {last} have it" if most else f"{last} has it"
    texts = (_of_attachment(one.removeprefix("--"), ctx.info_name) for one in sorted(names))
    more = next(filter(None, texts), "")
    return f"{found}; {more}" if more else found


def _theirs(name: str) -> list[Other]:
    """The options of other programs with that name. One of ours is not among them."""
    programs = (*migration.PROGRAMS, migration.HABITS)
    names = {name, name.removeprefix("-")} if name.startswith("--") else {name}
    return [other for program in programs for other in program.options if names & {*other.names.split()}]


def _of_attachment(name: str, command: str | None) -> str:
    """Where an option of an attachment is written, which this command does not have; "" for any other option."""
    from nbdattach.connect_options import ConnectOptions, ImageOptions, LastingOptions, TlsOptions, options_of

    if command in _KEEPING and name in options_of(LastingOptions):
        return "the device keeps that of connect"
    all_of_table = {**options_of(ConnectOptions), **options_of(TlsOptions), **options_of(ImageOptions)}
    if command != "up" or name not in all_of_table:
        return ""
    option = all_of_table[name]
    return f"in /etc/nbdtab it is {name}={option.kind}" if option.parse else f"in /etc/nbdtab it is {name}"
