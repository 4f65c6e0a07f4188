# SPDX-License-Identifier: GPL-2.0-or-later
"""The command connect."""

from __future__ import annotations

import sys
from typing import Any

import click

from nbdattach.cli.offers import free_devices, targets
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
from nbdattach.cli.report import OnTerminal, say, say_error, say_over
from nbdattach.cli.types import is_device, target_of
from nbdattach.cli.usage import command, corrected
from nbdattach.errors import Malformed, NbdattachError
from nbdattach.text import plain, quoted


@command()
@argument("target", shell_complete=targets)
@argument("device", required=False, shell_complete=free_devices)
@export_option
@connect_option("read-only", "-r", text="Attach read-only.")
@connect_option("read-write", text="Refuse an export that the server offers read-only.")
@connect_option("shared", text="Attach for writing what another device has for writing.")
@connect_option("block-size", "-b", text="Logical block size.")
@connect_option("connections", "-C", text="Number of connections to the server.")
@connect_option("also", text="Another server of the same data; may be repeated.")
@timeout_option
@connect_option("retry-for", text="Keep trying to connect for this long.")
@connect_option("backend", text="How to hand the connection to the kernel.")
@connect_option("on-loss", text="Let requests wait, or fail, while the server is away.", default="wait:300")
@connect_option("dead-peer", text="After this time a silent server counts as gone.")
@connect_option("io-timeout", text="How long a request may take; 0: no limit.")
@connect_option("scheduler", text="I/O scheduler of the device.", default="the kernel's")
@connect_option("read-ahead", text="How far the kernel reads ahead.", default="the kernel's")
@tls_options
@connect_option("tls-transport", text="Let the kernel or a relay encrypt.")
@connect_option("tag", text="Identity of the attachment.", default="TARGET's URI")
@connect_option("expect-size", text="Refuse an export of another size.")
@connect_option("size", text="Size of the export, with --no-handshake; or of the part of a raw image.")
@option("--no-handshake", is_flag=True, help="Skip the handshake; needs --size.")
@connect_option("format", text="Format of an image.", default="the image's own")
@connect_option("snapshot", text="Throw the writes to an image away at disconnect.")
@connect_option("cache", text="How the server of an image caches.", default="the safe one for its format")
@connect_option("discard", text="Pass TRIM on to the image, or not.")
@connect_option("offset", text="Where the disk begins in a raw image.")
@connect_option("swap", text="Make it safe to swap on the device.")
@option("-f", "--foreground", is_flag=True, help="Stay in the foreground; detach safely on SIGTERM.")
@connect_option("no-reconnect", text="Do not ask the monitor to look after the device.")
@json_option
@debug_option
def connect(
    target: str,
    device: str | None,
    export: str | None,
    foreground: bool,
    as_json: bool,
    no_handshake: bool,
    raw_size: int | None,
    **options: Any,
) -> None:
    """Attach an export, and print the device.

    Without DEVICE, the command uses a free one. When it returns, the device is ready: its size and block size are set,
    and its partitions exist.

    A SIZE is in bytes, or has K, M, G, T or P, such as 4K. A TIME is in seconds, or has ms, s, m, h or d, such as 5m.
    """
    trust = trust_of(options)
    if device is not None and not is_device(device):
        better = corrected(click.get_current_context())
        if better and is_device(target):
            raise Malformed(plain(target), "a device of the nbd driver in the place of TARGET", better)
        if better:
            raise Malformed(
                quoted(device), "not an nbd device", f"if it is the port: {better}" if device.isdigit() else better
            )
    from nbdattach.own_server.source import source_of

    source = source_of(target, export)
    if source is None:
        target_of(target, export, trust)
    if options["tag"] == "":
        raise Malformed("--tag", "an empty name", "leave it out for the target's URI")
    options["tag"] = options["tag"] or ""
    if source and no_handshake:
        raise Malformed("--no-handshake", "an image has a server that does the handshake", "leave it out")
    if no_handshake != (raw_size is not None) and source is None:
        raise Malformed(
            "--no-handshake" if no_handshake else "--size",
            "needs " + ("--size SIZE" if no_handshake else "--no-handshake"),
            "give both, or none",
        )
    from nbdattach import api
    from nbdattach.cli import render

    done = api.connect(
        target,
        device,
        export=export,
        size=raw_size,
        reporter=OnTerminal(),
        **{f"tls_{name}" if name != "required" else "tls": value for name, value in trust.items()},
        **options,
    )
    for note in done.notes:
        say(note)
    try:
        click.echo(render.as_json(render.status_object(done.status())) if as_json else done.device)
        sys.stdout.flush()
    except (OSError, KeyboardInterrupt):  # undo it, because the user was not told of the attachment
        if done.fresh:
            done.disconnect()
        raise
    if foreground:
        from nbdattach.cli import foreground as front

        front.stay(done, _say_below, OnTerminal(done.device))
        say_over("")


def _say_below(error: NbdattachError) -> None:
    """After the line that shows how long a flush takes."""
    say_over("")
    say_error(error)
