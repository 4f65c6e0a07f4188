# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several commands share, and the functions that combine their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from nbdattach.cli.offers import exports, files
from nbdattach.cli.report import warn_of_no_verify
from nbdattach.cli.types import TABLE, Value
from nbdattach.connect_options import ConnectOptions, TlsOptions, options_of

_F = TypeVar("_F", bound=Callable[..., Any])


def debug_option(function: _F) -> _F:
    return click.option("--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show each step.")(
        function
    )


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().obj = True


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


export_option = click.option(
    "-N", "--export", metavar="NAME", shell_complete=exports, help="Export, if TARGET is not a URI.  [default: '']"
)


_DECLARED = {**options_of(ConnectOptions), **options_of(TlsOptions)}


def connect_option(name: str, *short: str, default: str = "", text: str) -> Callable[[_F], _F]:
    """An option of connect by its long name, as `connect_options` declares it; the value is that of its field.

    `text` is its help. `default` tells users the default, if they could not type it.
    """
    option = _DECLARED[name]
    names = (*short, f"--{name}", option.field)
    if option.parse is None:
        return click.option(*names, is_flag=True, callback=lambda _ctx, _param, given: option.value(given), help=text)
    usual = None if option.default in (None, "", ()) else option.default
    return click.option(
        *names,
        type=Value(option.kind, option.parse, option.words),
        metavar=option.kind,
        multiple=option.many,
        default=usual,
        show_default=usual is not None,
        shell_complete=files if option.kind == "FILE" else None,
        help=f"{text}  [default: {default}]" if default else text,
    )


timeout_option = connect_option("connect-timeout", text="Deadline for connecting and the handshake.")


def tls_options(function: _F) -> _F:
    """Adds the options that require TLS and tell how to verify the server."""
    for option in reversed(
        (
            connect_option("tls", text="Require TLS, as nbds:// does."),
            connect_option("tls-ca", text="Trusted authorities: a PEM file, or a directory with certificates."),
            connect_option("tls-cert", text="The client's certificate."),
            connect_option("tls-key", text="The client's key.", default="in the certificate's file"),
            connect_option("tls-hostname", text="Name in the server's certificate.", default="TARGET's host"),
            connect_option("tls-psk", text="A pre-shared key, as psktool writes it."),
            connect_option("tls-no-verify", text="Accept any certificate."),
        )
    ):
        function = option(function)
    return function


def trust_of(given: dict[str, Any]) -> dict[str, Any]:
    """Removes the values of `tls_options` from those given; returns them as arguments for `target.with_tls`."""
    found = {option.field: given.pop(option.field) for option in options_of(TlsOptions).values()}
    if not found["verify"]:
        warn_of_no_verify()
    return found


table_option = click.option(
    "--table",
    "path",
    metavar="FILE",
    default=TABLE,
    show_default=True,
    shell_complete=files,
    help="The table of devices and exports.",
)
