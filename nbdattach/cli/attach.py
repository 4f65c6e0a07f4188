# SPDX-License-Identifier: GPL-2.0-or-later
"""The command connect."""

from __future__ import annotations

import sys
from typing import Any

import click

from nbdattach import option_values
from nbdattach.cli.offers import free_devices, targets
from nbdattach.cli.options import debug_option, export_option, json_option, timeout_option, tls_options, trust_of
from nbdattach.cli.report import say, say_error, trace
from nbdattach.cli.types import Value, number, one_of, seconds, target_of
from nbdattach.cli.usage import command
from nbdattach.errors import Malformed


@command()
@click.argument("target", shell_complete=targets)
@click.argument("device", required=False, shell_complete=free_devices)
@export_option
@click.option("-r", "--read-only", is_flag=True, help="Attach read-only.")
@click.option(
    "-b",
    "--block-size",
    type=Value("N", option_values.block_size, [*map(str, option_values.BLOCK_SIZES)]),
    metavar="N",
    help="Logical block size in bytes.",
)
@click.option(
    "-C",
    "--connections",
    type=Value("N|auto", option_values.connections, ["auto"]),
    metavar="N|auto",
    default="auto",
    show_default=True,
    help="Number of connections to the server.",
)
@timeout_option
@click.option(
    "--retry-for", type=seconds(), default=0.0, show_default=True, help="Keep trying to connect for this long."
)
@click.option(
    "--backend",
    type=one_of(option_values.BACKENDS),
    metavar=f"[{'|'.join(option_values.BACKENDS)}]",
    default="auto",
    show_default=True,
    help="How to hand the connection to the kernel.",
)
@click.option(
    "--on-loss",
    type=Value("wait[:SEC]|fail", option_values.on_loss, ["wait", "wait:300", "fail"]),
    metavar="wait[:SEC]|fail",
    help="Let requests wait, or fail, while the server is away.  [default: wait:300]",
)
@click.option(
    "--dead-peer",
    type=seconds(option_values.LEAST_DEAD_PEER),
    default=30.0,
    show_default=True,
    help="After this time a silent server counts as gone.",
)
@click.option(
    "--io-timeout", type=seconds(), default=0.0, show_default=True, help="How long a request may take; 0: no limit."
)
@tls_options
@click.option(
    "--tls-transport",
    type=one_of(option_values.TRANSPORTS),
    metavar=f"[{'|'.join(option_values.TRANSPORTS)}]",
    default="auto",
    show_default=True,
    help="Let the kernel or a relay encrypt.",
)
@click.option("--tag", metavar="NAME", help="Identity of the attachment.  [default: TARGET's URI]")
@click.option("--expect-size", type=number(0), metavar="BYTES", help="Refuse an export of another size.")
@click.option("--size", "raw_size", type=number(1), metavar="BYTES", help="Size of the export; needs --no-handshake.")
@click.option("--no-handshake", is_flag=True, help="Skip the handshake; needs --size.")
@click.option("--swap", is_flag=True, help="Make it safe to swap on the device.")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground; detach safely on SIGTERM.")
@click.option("--no-reconnect", is_flag=True, help="Do not ask the monitor to look after the device.")
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
    no_reconnect: bool,
    **wishes: Any,
) -> None:
    """Attach an export, and print the device.

    Without DEVICE, the command uses a free one. When it returns, the device is ready: its size and block size are set,
    and its partitions exist.
    """
    trust = trust_of(wishes)
    target_of(target, export, trust)
    if wishes["tag"] == "":
        raise Malformed("--tag", "an empty name", "leave it out for the target's URI")
    wishes["tag"] = wishes["tag"] or ""
    if no_handshake != (raw_size is not None):
        raise Malformed(
            "--no-handshake" if no_handshake else "--size",
            "needs " + ("--size BYTES" if no_handshake else "--no-handshake"),
            "give both, or none",
        )
    from nbdattach import api
    from nbdattach.cli import render

    done = api.connect(
        target,
        device,
        export=export,
        size=raw_size,
        reconnect=not no_reconnect,
        trace=trace(),
        **{f"tls_{name}" if name != "required" else "tls": value for name, value in trust.items()},
        **wishes,
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

        front.stay(done, say_error, trace())
