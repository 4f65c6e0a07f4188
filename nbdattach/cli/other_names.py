# SPDX-License-Identifier: GPL-2.0-or-later
"""Advice about a command or an option that does not exist, or that only other commands have. For errors only.

It knows the names that nbd-client, qemu-nbd and other tools have for ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import click

# By the names that other programs have. None of these is a name of ours.
COMMANDS = {
    "attach": "connect",
    "map": "connect",
    "add": "connect",
    "mount": "connect",
    "detach": "disconnect",
    "unmap": "disconnect",
    "remove": "disconnect",
    "umount": "disconnect",
    "show": "status",
    "help": "--help",
    "version": "--version",
}
OPTIONS = {
    "--name": "--export",
    "-n": "--export",
    "-t": "--io-timeout",
    "--readonly": "--read-only",
    "--bs": "--block-size",
    "--conns": "--connections",
    "--retry": "--retry-for",
    "--wait": "--retry-for",
    "--verbose": "--debug",
    "-V": "--version",
    "-v": "--version",
}
# In place of an option: options of nbd-client and qemu-nbd, or of none.
ADVICE = {
    "--port": "the port is part of the TARGET: HOST:10809",
    "-p": "the port is part of the TARGET: HOST:10809",
    "--persist": "leave it out: requests wait for a lost server, see --on-loss",
    "--tls-verify": "leave it out: the server is always verified",
    "-c": "nbdattach connect TARGET /dev/nbd0",
    "-d": "nbdattach disconnect /dev/nbd0",
    "-l": "nbdattach list TARGET",
    "--connect": "nbdattach connect TARGET /dev/nbd0",
    "--disconnect": "nbdattach disconnect /dev/nbd0",
    "--list": "nbdattach list TARGET",
}
# The advice for an option before the command, which belongs to a command.
BEHIND = "write it behind the command"
# Commands for a device that keeps the options of connect.
_KEEPING = ("reconnect", "resize")


def similar(kind: str, name: str, known: Sequence[str]) -> list[str]:
    """Names that may be meant, the likeliest first."""
    other = (COMMANDS if kind == "command" else OPTIONS).get(name)
    if other and (other in known or kind == "command"):
        return [other]
    if kind == "option" and name in ADVICE:
        return []
    return get_close_matches(name, known)


def advice(name: str, ctx: click.Context) -> str:
    """About an option that this command does not have: the commands that have it, or how to do without it."""
    if name in ADVICE:
        return ADVICE[name]
    group = ctx.find_root().command
    if not isinstance(group, click.Group):
        return ""
    having = [of for of in sorted(group.commands) if name in _options(group.commands[of])]
    if not having or len(having) == len(group.commands):
        return ""
    if ctx.parent is None:
        return BEHIND
    *most, last = having
    found = f"{', '.join(most)} and {last} have it" if most else f"{last} has it"
    more = _of_attachment(name.removeprefix("--"), ctx.info_name)
    return f"{found}; {more}" if more else found


def _options(command: click.Command) -> Mapping[str, click.Parameter]:
    return {name: param for param in command.params if isinstance(param, click.Option) for name in param.opts}


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
