# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that change an attachment, and the one that keeps attachments connected: reconnect, resize, monitor."""

from __future__ import annotations

from typing import Any

import click

from nbdattach.cli.offers import attached_devices, targets
from nbdattach.cli.options import debug_option, export_option, json_option, tls_options, trust_of
from nbdattach.cli.parameters import argument, option
from nbdattach.cli.report import say
from nbdattach.cli.types import device_at, is_device, target_of
from nbdattach.cli.usage import command, corrected
from nbdattach.errors import KernelRefused, Malformed
from nbdattach.text import plain, quoted


@command()
@argument("device", shell_complete=attached_devices)
@argument("target", required=False, shell_complete=targets)
@export_option
@option("--trust", is_flag=True, help="Accept the disk though its content is not that of the attached one.")
@option("--shared", is_flag=True, help="Move it to what another device has for writing.")
@tls_options
@json_option
@debug_option
def reconnect(
    device: str, target: str | None, export: str | None, trust: bool, shared: bool, as_json: bool, **tls: Any
) -> None:
    """Move a device to a new connection or another server.

    Programs that use the device see no I/O error. TARGET is another server with the same data; without it, the new
    connection goes to the same server as the old one. A disk with other content is refused, unless you --trust it.
    """
    if target is not None and is_device(target) and not is_device(device):
        better = corrected(click.get_current_context())
        raise Malformed(quoted(device), "not an nbd device", better or "DEVICE comes before TARGET")
    where = device_at(device)
    if target is None and export is not None:
        raise Malformed("--export", "needs a TARGET", "leave it out to keep the export")
    if target is None and shared:
        raise Malformed("--shared", "needs a TARGET", "leave it out to keep the server")
    tls_trust = trust_of(tls)
    if target is None and target_of("localhost", None, tls_trust).tls:
        raise Malformed("--tls", "the TLS options need a TARGET", "leave them out to keep those of connect")
    from nbdattach.attached import state
    from nbdattach.cli import render
    from nbdattach.operations import handover
    from nbdattach.own_server.source import source_of

    if target is not None and source_of(target):
        cause = "an image, or a command, has a server of its own, which is started for one device only"
        raise Malformed(plain(target), cause, "disconnect the device, and connect the image")
    wanted = None if target is None else target_of(target, export, tls_trust)

    uri = handover.reconnect(where, wanted, trust, shared)
    record = state.load(where)
    name = plain(record.server.name) if record and record.server else uri
    if as_json:
        click.echo(render.as_json({"device": where.path, "target": name}))
    else:
        say(f"{where.path}: connected to {name}")


@command()
@argument("device", shell_complete=attached_devices)
@json_option
@debug_option
def resize(device: str, as_json: bool) -> None:
    """Give a device the new size of its export."""
    where = device_at(device)
    from nbdattach import api
    from nbdattach.cli import render

    there = api.Attachment.at(where.path)
    outcome = there.resize()
    if as_json:
        click.echo(render.as_json({"device": where.path, "size": there.status().size, "outcome": outcome}))
    else:
        say(f"{where.path}: {outcome}")


@command()
@option("-b", "--background", is_flag=True, help="Return when it is ready; it logs to the kernel's log.")
@debug_option
def monitor(background: bool) -> None:
    """Reconnect devices after a server was away.

    One monitor runs for all devices of a host. connect starts it if none runs.
    """
    from nbdattach.backends import choice
    from nbdattach.monitor import launch

    missing = choice.why_no_netlink()
    if missing:
        # The monitor has no such option, and nothing to do for the other backend.
        hint = "see nbdattach doctor" if "--backend" in missing.hint else missing.hint
        raise KernelRefused(missing.thing, missing.cause, hint)
    if background:
        launch.in_background()
        return
    from nbdattach.host import log
    from nbdattach.monitor import service

    service.run(log.of_service())
