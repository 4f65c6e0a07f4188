# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that only show something: status, list, info, check, doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from nbdattach.cli.offers import attached_devices, targets
from nbdattach.cli.options import debug_option, export_option, json_option, timeout_option, tls_options, trust_of
from nbdattach.cli.parameters import argument, option
from nbdattach.cli.report import each, trace
from nbdattach.cli.types import device_of, target_of
from nbdattach.cli.usage import command
from nbdattach.errors import KernelRefused, Malformed

if TYPE_CHECKING:
    from nbdattach.attached.status import Status


@command()
@argument("devices", nargs=-1, metavar="[DEVICE...]", shell_complete=attached_devices)
@option("--watch", is_flag=True, help="Show it live, with read and write rates, until q is typed.")
@json_option
@debug_option
def status(devices: tuple[str, ...], watch: bool, as_json: bool) -> None:
    """Show the attached devices, also those of other programs."""
    wanted = [device_of(text) for text in devices]
    if watch and as_json:
        raise Malformed(
            "--watch", "cannot be combined with --json", "leave one out; a program can run status --json repeatedly"
        )
    from nbdattach import api
    from nbdattach.cli import render
    from nbdattach.kernel import driver

    driver.refuse_other_systems()
    if watch:
        from nbdattach.cli import screen

        screen.watch(wanted)
        return
    found: list[Status] = []

    def show() -> None:
        if as_json:
            click.echo(render.status_json(found))
        elif found:
            click.echo(render.status_table(found))

    if not wanted:
        found += api.attachments()
        show()
        return
    try:
        each(wanted, lambda device: found.append(api.Attachment.at(device.path).status()))
    finally:
        show()


@command("list")
@argument("target", shell_complete=targets)
@timeout_option
@tls_options
@json_option
@debug_option
def list_(target: str, connect_timeout: float, as_json: bool, **tls: Any) -> None:
    """List the exports that a server offers."""
    wanted = target_of(target, None, trust_of(tls))
    from nbdattach.cli import render
    from nbdattach.connection import client

    exports = client.list_exports(wanted, connect_timeout, trace())
    click.echo(render.list_json(wanted, exports) if as_json else render.list_table(exports))


@command()
@argument("target", shell_complete=targets)
@export_option
@timeout_option
@tls_options
@json_option
@debug_option
def info(target: str, export: str | None, connect_timeout: float, as_json: bool, **tls: Any) -> None:
    """Show one export: size, flags, block sizes."""
    wanted = target_of(target, export, trust_of(tls))
    from nbdattach.cli import render
    from nbdattach.connection import client

    found = client.inspect(wanted, connect_timeout, trace())
    click.echo(render.info_json(wanted, found) if as_json else render.info_lines(wanted, found))


@command()
@argument("target", shell_complete=targets)
@export_option
@timeout_option
@tls_options
@json_option
@debug_option
def check(target: str, export: str | None, connect_timeout: float, as_json: bool, **tls: Any) -> None:
    """Check that an export can be read.

    The command does the handshake and reads some data, without the kernel.
    """
    wanted = target_of(target, export, trust_of(tls))
    from nbdattach.cli import render
    from nbdattach.connection import client

    found = client.check(wanted, connect_timeout, trace())
    if as_json:
        click.echo(render.check_json(wanted, found))
    if found.error:
        raise found.error
    if not as_json:
        click.echo(render.check_line(wanted, found))


@command()
@json_option
@debug_option
def doctor(as_json: bool) -> None:
    """List problems of this machine, with remedies."""
    from nbdattach import doctor
    from nbdattach.cli import render

    found = doctor.examine()
    click.echo(render.findings_json(found) if as_json else render.findings_lines(found))
    if any(one.stands_in_the_way for one in found):
        click.get_current_context().exit(KernelRefused.exit_code)
