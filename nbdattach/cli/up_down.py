# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands for the devices of /etc/nbdtab: up, down."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING

import click

from nbdattach.cli.failure import Failures
from nbdattach.cli.interrupt import killed_by_interrupt
from nbdattach.cli.offers import table_devices
from nbdattach.cli.options import debug_option, json_option, table_option
from nbdattach.cli.parameters import argument, option
from nbdattach.cli.report import OnTerminal, each, say, say_error, say_over, warn_of_no_verify
from nbdattach.cli.types import device_of, seconds
from nbdattach.cli.usage import command
from nbdattach.errors import NbdattachError

if TYPE_CHECKING:
    from nbdattach.device import Device


@command()
@argument("devices", nargs=-1, metavar="[DEVICE...]", shell_complete=table_devices)
@option("--all", "everything", is_flag=True, help="Attach the devices of all lines, at the same time.")
@option("--check", "only_check", is_flag=True, help="Only report mistakes, in the whole file.")
@option(
    "--retry-for",
    type=seconds(),
    default=0.0,
    show_default=True,
    help="Keep trying for this long, for lines without retry-for.",
)
@table_option
@json_option
@debug_option
def up(
    devices: tuple[str, ...], everything: bool, only_check: bool, retry_for: float, path: str, as_json: bool
) -> None:
    """Attach devices of /etc/nbdtab, and print them.

    A device that is attached already counts as success. If a device cannot be attached, the command reports it, and
    still attaches the others.
    """
    if bool(devices) + everything + only_check == 0 or (devices and everything):
        raise click.UsageError("Give devices, or --all, or --check.", click.get_current_context())
    wanted = None if everything else list(dict.fromkeys(device_of(text) for text in devices))
    from nbdattach.boot import table
    from nbdattach.cli import render

    found = table.read(path)
    entries, failures = table.chosen(found, wanted, path)
    if only_check:
        failures = list(dict.fromkeys([*(mistake.error for mistake in found.mistakes), *failures]))
        for failure in failures:  # in the order of the lines
            say_error(failure)
        if failures:
            raise Failures(failures, said=True)
        if as_json:
            click.echo(render.as_json({"ok": True}))
        return
    for entry in entries:
        if not entry.target.tls_verify:
            warn_of_no_verify(f"{entry.device.path}: ")
    for failure in failures:
        say_error(failure)
    failed: dict[Device, NbdattachError] = {}
    results: list[dict[str, object]] = []
    with killed_by_interrupt():
        for entry, outcome in table.up(table.patient(entries, retry_for), OnTerminal()):
            try:
                if isinstance(outcome, NbdattachError):
                    raise outcome
                for note in outcome.notes:
                    say(note)
                if as_json:
                    results.append(render.status_object(outcome.status()))
                else:
                    click.echo(outcome.device)
                    sys.stdout.flush()
            except NbdattachError as error:
                failed[entry.device] = error
                say_error(error)
    failures += [failed[entry.device] for entry in entries if entry.device in failed]
    if failures:
        raise Failures(failures, results, said=True)
    if as_json:
        click.echo(render.as_json(results))


@command()
@argument("devices", nargs=-1, metavar="[DEVICE...]", shell_complete=table_devices)
@option("--all", "everything", is_flag=True, help="Detach the devices of all lines, from the last to the first.")
@option("--unit", metavar="NAME", help="Run as ExecStop= of this systemd unit.")
@table_option
@json_option
@debug_option
def down(devices: tuple[str, ...], everything: bool, unit: str | None, path: str, as_json: bool) -> None:
    """Detach devices of /etc/nbdtab, once it is safe.

    A device that is not attached counts as success. A device is left alone if up did not attach it and it holds
    another export than its line names.
    """
    if bool(devices) + everything != 1:
        raise click.UsageError("Give devices, or --all.", click.get_current_context())
    wanted = list(dict.fromkeys(device_of(text) for text in devices))
    from nbdattach.boot import table
    from nbdattach.boot import unit as units
    from nbdattach.cli import render

    failures: list[NbdattachError] = []
    results: list[dict[str, object]] = []
    if everything:
        wanted, failures = table.all_to_detach(path)

    def one(device: Device) -> None:
        try:
            detach = functools.partial(units.down, unit=unit) if unit else table.down
            done = detach(device, path=path, reporter=OnTerminal(device.path))
        finally:
            say_over("")
        results.append(render.detached_object(device.path, done))
        if done:
            say(f"{device.path}: {done}, nothing to do")

    each(wanted, one, failures, results)
    if as_json:
        click.echo(render.as_json(results))
