# SPDX-License-Identifier: GPL-2.0-or-later
"""A wrong command line, as the command of ours that was meant, by the habits of other programs. For errors only.

Decisions that matter:
* The words are read by the options of one program after another (`foreign`). The first reading that our command line
  accepts (`accepted`) is the answer, so no hint is printed that fails, too.
* An option that the typed command of ours has keeps its meaning, if such a reading is accepted.
* TARGET or DEVICE stands in the hint for an operand that was not typed.
* A word with unprintable characters is in no hint: as it can be shown, it would name something else.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches

import click

from nbdattach.cli import foreign, migration
from nbdattach.cli.accepted import is_accepted
from nbdattach.cli.foreign import Line
from nbdattach.cli.kinds import is_device, is_folder, is_image, is_place, may_be_path
from nbdattach.cli.migration import HABITS, LOSETUP, NBD_CLIENT, PROGRAMS, QEMU_NBD, Program
from nbdattach.errors import Malformed
from nbdattach.own_server.source import collapsed, one_text
from nbdattach.protocol import mistyped
from nbdattach.protocol.target import parse_target, targets_meant
from nbdattach.text import typed

# How alike a word must be to be a mistyped command rather than a host.
_ALIKE = 0.75
# For an image that may be qcow2 it has --cache=writethrough, too; nbdattach-images(7) gives the reason.
_SERVER = ("qemu-nbd", "-t", "-e", "0")
# Names of disks that QEMU opens by a driver of its own.
_OF_QEMU = "(rbd|iscsi|ssh|gluster|nfs|fat|json|https?|ftps?)[+a-z]*:"
# Options of connect for images: in a command in brackets they are the server's.
_OF_IMAGES = ("--format", "--snapshot", "--cache", "--discard", "--offset", "--read-only")


class _NotSo(Exception):
    """The words do not mean a command in this reading."""


def corrected(words: Sequence[str], group: click.Group) -> str:
    """The command that does what the words were to do, and why options are left out; "" if none is known.

    It is accepted as it is typed. If an option must not be left out, the text only says what to do about it.
    """
    if not words or {"-h", "--help"} & {*words}:
        return ""
    try:
        words = collapsed(words)
    except Malformed:
        return ""
    if os.path.basename(words[0]) == "nbdattach" and len(words) > 1:
        return as_typed(words[1:]) if is_accepted(words[1:], group) else corrected(words[1:], group)
    if words[0] == "help" and len(words) == 2:
        meant, _ = _command_of(words[1:], group)
        return as_typed(["help", meant]) if meant and meant in group.commands else ""
    if words[0] in ("mount", "umount") and any(map(is_folder, words[1:])):
        return ""  # the folder of a file system
    if is_accepted(words, group):
        return ""  # another mistake, such as two options that exclude each other
    for command, read in _readings(words, group):
        try:
            found, program = read()
            line, reasons = _as_ours(command, found, program, program.name == words[0])
        except (_NotSo, foreign.Unreadable):
            continue
        if not line:
            return "; ".join(reasons)
        if {"TARGET", "DEVICE"} & {*line} and command == words[0] and not any(taken.other for taken in found.options):
            return ""  # only an operand is missing
        if is_accepted(line, group):
            doubt = f"if {words[0]} is a host: " if command is None and _may_be_verb(words[0], line) else ""
            return "; ".join([doubt + as_typed(line), *dict.fromkeys(reasons)])
    return ""


def _may_be_verb(word: str, line: Sequence[str]) -> bool:
    """Whether the line takes a word for a host that may as well be a command which does not exist ("finish nbd0")."""
    return line[0] == "connect" and word in line and word.isalpha() and word != "localhost"


def as_typed(words: Sequence[str]) -> str:
    """The command line that has these words."""
    return " ".join(("nbdattach", *(word if word.startswith("[ ") else typed(word) for word in words)))


_Reading = tuple["str | None", Callable[[], tuple[Line, Program]]]


def _readings(words: Sequence[str], group: click.Group) -> Iterator[_Reading]:
    """The command that was typed, None for none, and the readings of the other words, the likeliest first."""

    def reading(command: str | None, rest: Sequence[str], program: Program, own: str | None, first: bool) -> _Reading:
        known = group.commands[own] if own else None
        return command, lambda: (foreign.read(rest, program, known, own_first=first), program)

    named = [program for program in PROGRAMS if program.name == words[0]]
    if named:
        yield reading(None, words[1:], named[0], None, False)
        return
    command, rest = _command_of(words, group)
    programs = (QEMU_NBD, LOSETUP, NBD_CLIENT) if any(map(is_image, rest)) else PROGRAMS
    own = command if command in group.commands else None
    for program in programs:
        yield reading(command, rest, program, own, True)
    for program in programs:
        yield reading(command, rest, program, own or "connect", False)


def _command_of(words: Sequence[str], group: click.Group) -> tuple[str | None, Sequence[str]]:
    """The command of ours that was meant, and the other words; None if the words name none."""
    first, rest = words[0], words[1:]
    if first.lower() in group.commands:
        return first.lower(), rest
    if first in migration.COMMANDS:
        operands = [word for word in rest if not word.startswith("-")]
        other = migration.WITH_ARGUMENT.get(first) if operands and not any(map(is_device, operands)) else None
        return other or migration.COMMANDS[first], rest
    if first.startswith("-") or is_device(first):
        at = next((at for at, word in enumerate(words) if word in group.commands), None)
        return (None, words) if at is None else (words[at], [*words[:at], *words[at + 1 :]])
    begun = [name for name in group.commands if len(first) > 2 and name.startswith(first)]
    alike = begun if len(begun) == 1 else get_close_matches(first, [*group.commands], n=1, cutoff=_ALIKE)
    return (alike[0], rest) if alike else (None, words)


def _as_ours(given: str | None, line: Line, program: Program, named: bool) -> tuple[list[str], list[str]]:
    """Our words, and reasons why options are left out; no words if they must not be. Raises `_NotSo`.

    `named`: the program's name was typed, too.
    """
    chosen = {taken.other.ours.split()[0] for taken in line.of("command") if taken.other}
    if len(chosen) > 1:
        raise _NotSo
    command = _chosen(given, chosen.pop() if chosen else None, line, program, named)
    if command in ("--version", "--help"):
        return [command], []
    needed = [taken.other.why for taken in line.options if taken.other and taken.other.needed]
    if needed:
        return [], needed
    if command == "connect":
        return _connect(line, program, named)
    if line.of("left out"):
        raise _NotSo
    if command == "list" and not given and not line.operands and not line.of("target"):
        raise _NotSo  # of losetup, -l is nbdattach status
    options = [word for taken in line.options for word in taken.ours]
    return [command, *options, *_operands(command, line, options)], []


def _chosen(given: str | None, chosen: str | None, line: Line, program: Program, named: bool) -> str:
    """The command, by what was typed or by an option such as -d."""
    if given not in (None, "connect", chosen) and chosen:
        raise _NotSo
    if chosen or given:
        return chosen or str(given)
    operands = line.operands
    is_theirs = any(taken.other for taken in line.options)
    if program is LOSETUP and not named and not all(map(is_place, operands)):
        raise _NotSo
    if not operands or (len(operands) == 1 and not is_theirs and not is_place(operands[0])):
        raise _NotSo
    if len(operands) > 1 and not (is_theirs or operands[1].isdigit() or any(map(is_device, operands))):
        raise _NotSo
    is_lone_device = len(operands) == 1 and not line.options and is_device(operands[0])
    if is_lone_device and program is LOSETUP:
        return "status"
    return "up" if is_lone_device and program is NBD_CLIENT else "connect"


def _connect(line: Line, program: Program, named: bool) -> tuple[list[str], list[str]]:
    operands = [*line.operands]
    devices = _devices(line)
    if not devices:
        devices = [word for word in operands if is_device(word)][-1:]
        operands = [word for word in operands if word not in devices]
    if len(devices) > 1 or any(map(is_device, operands)):
        raise _NotSo
    target = _target(line, operands, for_connect=True)
    if named and program is not NBD_CLIENT and target in operands and not is_place(target):
        target = f"./{target}"  # to these programs it is a file
    is_brackets = program is QEMU_NBD and bool(line.of("in brackets") or re.match(_OF_QEMU, target))
    if (line.of("in brackets") and not is_brackets) or (is_brackets and target.startswith("[ ")):
        raise _NotSo
    of_image = is_brackets or is_image(target)
    ours, theirs, reasons = [], [], []
    for taken in line.options:
        of_qemu = taken.other in QEMU_NBD.options
        if of_qemu and taken.other and not (taken.other.ours or of_image or named or target.startswith("/")):
            raise _NotSo  # it is an option of an image's server
        if is_brackets and ({*taken.ours[:1]} & {*_OF_IMAGES} or taken in line.of("in brackets")):
            theirs += taken.words if of_qemu else taken.ours
        elif taken.other and taken.other.why and (not taken.other.ours or of_image):
            reasons.append(f"{taken.name} is left out: {taken.other.why}")
        else:
            ours += taken.ours
    of_target = one_text([*_SERVER, *_safe_cache(theirs), *theirs, target]) if is_brackets else target
    return ["connect", *ours, of_target, *devices], reasons


def _safe_cache(words: Sequence[str]) -> list[str]:
    """The option without which a device goes on without some of its writes, if the server is killed: see _SERVER."""
    text = f" {' '.join(words)} "
    is_safe = re.search(
        r" (-f|--format)[ =]?raw | -r | --read-only | (-l|--load-snapshot)[ =]| -n | --(no)?cache[ =]", text
    )
    return [] if is_safe else ["--cache=writethrough"]


def _operands(command: str, line: Line, options: Sequence[str]) -> list[str]:
    """Those of any command but connect. Raises `_NotSo`."""
    if line.of("in brackets"):
        raise _NotSo
    is_port = len(line.operands) == 2 and line.operands[1].isdigit() and not is_device(line.operands[0])
    if command in ("list", "info") or (command in ("check", "disconnect") and (is_port or line.of("target"))):
        if _devices(line):
            raise _NotSo
        return [_target(line, line.operands)]
    operands = [*_devices(line), *line.operands]
    if command == "reconnect" and any(map(is_device, operands)):
        device = next(filter(is_device, operands))
        others = [word for word in operands if word != device]
        given = {taken.other.value for taken in line.of("target") if taken.other}
        if given == {"PORT"} and not others:
            raise _NotSo  # of which host?
        operands = [device, _target(line, others)] if others or given else [device]
    elif line.of("target"):
        raise _NotSo
    if command in ("disconnect", "check"):
        operands = [_well_formed(word) if ":" in word else word for word in operands]
    added = [word for taken in line.of("command") if taken.other for word in taken.other.ours.split()[1:]]
    operands = [word for word in added if word.startswith("-")] + operands
    is_missing = not operands and not {"--all", "--tag"} & {*options}
    return ["DEVICE"] if is_missing and command in ("disconnect", "reconnect", "resize") else operands


def _devices(line: Line) -> list[str]:
    """From options such as -c DEVICE."""
    commands = line.of("command")
    return [taken.value for taken in commands if taken.value and taken.other and taken.other.value == "DEVICE"]


def _target(line: Line, operands: Sequence[str], for_connect: bool = False) -> str:
    """TARGET, of all that names the server. Raises `_NotSo`.

    `for_connect`: options that name a server may be there for an image, because it is said that they are left out.
    """
    given = {taken.other.value: taken.value or "" for taken in line.of("target") if taken.other}
    host, *more = operands or [""]
    if more and (is_image(host) or host.startswith(("/", "[ "))):
        raise _NotSo
    if len(more) == 1 and more[0].isdigit() and "PORT" not in given:
        given["PORT"] = more.pop()
    if more:
        raise _NotSo
    if any(taken.other and taken.other.ours == "connect PATH" for taken in line.options) and host[:1] not in ("", "/"):
        raise _NotSo
    if is_image(host) or host.startswith("/"):
        if given and not (for_connect and is_image(host) and line.of("target")):
            raise _NotSo
        return host
    hosts = [name for name in (host, given.get("ADDRESS"), given.get("PATH")) if name]
    if len(hosts) > 1:
        raise _NotSo
    if "PORT" not in given:
        return _well_formed(hosts[0]) if hosts else "TARGET"
    host = hosts[0] if hosts else "localhost"
    if re.search(r"[/\[]|^[^:]*:[^:]*$", host):
        raise _NotSo
    return f"[{host}]:{given['PORT']}" if ":" in host else f"{host}:{given['PORT']}"


def _well_formed(text: str) -> str:
    """The one target that a mistyped one may mean (::1 is [::1]); else the text itself."""
    try:
        if may_be_path(text) or text.startswith("[ ") or re.match(_OF_QEMU, text) or parse_target(text):
            return text
    except Malformed:
        pass
    meant = targets_meant(text)
    return meant[0] if len(meant) == 1 and mistyped.SOME_INTERFACE not in meant[0] else text


def misread(name: str, words: Sequence[str], own: Sequence[str]) -> str:
    """The whole word, if click took a long option with one dash (-persist) for short ones and complains of `name`.

    `own`: the long options of the command.
    """
    known = {name for program in (*PROGRAMS, HABITS) for other in program.options for name in other.names.split()}
    known |= {name[1:] for name in {*known, *own} if name.startswith("--")}
    for word in words:
        whole = word.partition("=")[0]
        if len(whole) > 2 and whole[1] != "-" and name[1:2] in whole and whole in known:
            return whole
    return name
