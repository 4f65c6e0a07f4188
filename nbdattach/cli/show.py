# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that only show something: status, list, info, check, doctor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nbdattach.cli.failure import Failures
from nbdattach.cli.offers import attached_devices, targets
from nbdattach.cli.options import (
    connect_option,
    debug_option,
    export_option,
    json_option,
    timeout_option,
    tls_options,
    trust_of,
)
from nbdattach.cli.parameters import argument, option
from nbdattach.cli.report import each, say, terminal_width, trace
from nbdattach.cli.types import device_at, word_of
from nbdattach.cli.usage import command, corrected
from nbdattach.errors import KernelRefused, Malformed, NbdattachError
from nbdattach.text import quoted

if TYPE_CHECKING:
    from nbdattach.attached.status import Status

_F = TypeVar("_F", bound=Callable[..., Any])
FORMATS = ("table", "json", "openmetrics")


@command()
@argument("devices", nargs=-1, metavar="[DEVICE...]", shell_complete=attached_devices)
@option("-o", "--output", metavar="COL,...", help="Show these fields of the JSON object; 'all' for each.")
@option("--noheadings", is_flag=True, help="Print no line of headings.")
@option("--bytes", "in_bytes", is_flag=True, help="Print sizes in bytes.")
@option("--watch", is_flag=True, help="Show it live, with rates and latencies, until q is typed.")
@option(
    "--format",
    "form",
    type=word_of(FORMATS),
    metavar=f"[{'|'.join(FORMATS)}]",
    help="How to print it; openmetrics is for Prometheus.  [default: table]",
)
@json_option
@debug_option
def status(
    devices: tuple[str, ...],
    output: str | None,
    noheadings: bool,
    in_bytes: bool,
    watch: bool,
    form: str | None,
    as_json: bool,
) -> None:
    """Show the attached devices, also those of other programs."""
    wanted = [device_at(text) for text in devices]
    from nbdattach.cli import render, status_table

    _refuse_conflicts(output, watch, form, as_json)
    as_json = as_json or form == "json"
    fields = None if output is None else status_table.chosen(output)
    from nbdattach import api
    from nbdattach.kernel import driver

    driver.refuse_other_systems()
    if watch:
        from nbdattach.cli import screen

        screen.watch(wanted)
        return
    found: list[Status] = []
    failures: list[NbdattachError] = []
    if wanted:
        try:
            each(wanted, lambda device: found.append(api.Attachment.at(device.path).status()))
        except Failures as failed:
            failures += failed.errors
    else:
        found += api.attachments()
    objects = status_table.objects(found, fields)
    if form == "openmetrics":
        from nbdattach.cli import measuring

        click.echo(measuring.openmetrics(found))
    elif found and not as_json:
        headings = not noheadings
        click.echo(
            status_table.chosen_table(found, fields, headings=headings, in_bytes=in_bytes)
            if fields
            else status_table.usual_table(found, terminal_width(), headings=headings, in_bytes=in_bytes)
        )
    if failures:
        raise Failures(failures, objects)
    if as_json:
        click.echo(render.as_json(objects))
    elif not found and form in (None, "table") and sys.stderr.isatty():
        say("nothing is attached")


def _refuse_conflicts(output: str | None, watch: bool, form: str | None, as_json: bool) -> None:
    another = f"--format {form}" if form not in (None, "table") else ""
    if as_json and another not in ("", "--format json"):
        raise Malformed("--json", f"cannot be combined with {another}", "leave one out")
    other = "--json" if as_json else "--output" if output is not None else another
    if watch and other:
        hint = "leave one out; a program can run status --json repeatedly"
        raise Malformed("--watch", f"cannot be combined with {other}", hint)
    if output is not None and form == "openmetrics":
        raise Malformed("--output", f"cannot be combined with {another}", "leave one out")


def _look_options(function: _F) -> _F:
    """Options of the commands that ask a server, without a device."""
    image_format = connect_option("format", text="Format of the image.", default="the image's own")
    for add in (debug_option, json_option, tls_options, timeout_option, image_format):
        function = add(function)
    return function


@command("list")
@argument("target", shell_complete=targets)
@_look_options
def list_(
    target: str,
    format: str | None,
    connect_timeout: float,
    as_json: bool,
    **tls: Any,
) -> None:
    """List the exports that a server offers."""
    from nbdattach.cli import render
    from nbdattach.cli.reach import reached
    from nbdattach.connection import client

    with reached(target, None, trust_of(tls), format) as there:
        exports = client.list_exports(there.target, connect_timeout, trace())
    click.echo(render.list_json(there.server, exports) if as_json else render.list_table(exports))


@command()
@argument("target", shell_complete=targets)
@export_option
@_look_options
def info(
    target: str,
    export: str | None,
    format: str | None,
    connect_timeout: float,
    as_json: bool,
    **tls: Any,
) -> None:
    """Show one export: size, flags, block sizes."""
    from nbdattach.backends import durability, limits
    from nbdattach.cli import render
    from nbdattach.cli.reach import reached
    from nbdattach.connection import client

    with reached(target, export, trust_of(tls), format) as there:
        found = client.inspect(there.target, connect_timeout, trace())
    refusal = limits.refusal(there.name, found.export)
    if as_json:
        click.echo(render.info_json(there.name, found, refusal, there.image))
    else:
        tail = "" if refusal else limits.plan(there.name, found.export).lack
        lacks = (tail, durability.lack_of_flush(found.export))
        click.echo(render.info_lines(there.name, found, refusal, there.image, lacks))


@command()
@argument("targets", nargs=-1, required=True, metavar="TARGET...", shell_complete=targets)
@export_option
@_look_options
def check(
    targets: tuple[str, ...],
    export: str | None,
    format: str | None,
    connect_timeout: float,
    as_json: bool,
    **tls: Any,
) -> None:
    """Check that exports can be read.

    The command does the handshake and reads some data, without the kernel. Several targets are checked at the same
    time; if one fails, the command reports it, and still checks the others.
    """
    from nbdattach.cli import render
    from nbdattach.cli.checking import checked
    from nbdattach.cli.reach import reached

    port = next((text for text in targets[1:] if text.isdigit()), None)
    if port:
        better = corrected(click.get_current_context())
        raise Malformed(quoted(port), "a number, not a server", better or "a port is part of the TARGET: HOST:PORT")
    trust = trust_of(tls)
    ways = [(text, partial(reached, text, export, trust, format)) for text in targets]
    failures, shown = [], []
    for name, found in checked(ways, connect_timeout, trace()):
        shown.append((name, found))
        if found.error:
            failures.append(found.error)
        elif not as_json:
            click.echo(render.check_line(name, found))
    document = render.checks_document(shown)
    if failures:
        raise Failures(failures, document=document)
    if as_json:
        click.echo(render.as_json(document))


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
