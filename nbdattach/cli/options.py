# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several commands share, and the functions that combine their values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nbdattach.cli.offers import exports, files
from nbdattach.cli.parameters import later, option
from nbdattach.cli.report import warn_of_no_verify
from nbdattach.cli.types import TABLE, Value

if TYPE_CHECKING:
    from nbdattach.connect_options import Option

_F = TypeVar("_F", bound=Callable[..., Any])


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().obj = True


debug_option = option("--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show each step.")


json_option = option("--json", "as_json", is_flag=True, help="Print one JSON document.")


export_option = option(
    "-N", "--export", metavar="NAME", shell_complete=exports, help="Export, if TARGET is not a URI.  [default: '']"
)


@functools.cache
def _declared() -> dict[str, Option]:
    """Imported when a command needs its options: `nbdattach --help` needs none."""
    from nbdattach.connect_options import ConnectOptions, ImageOptions, TlsOptions, options_of

    return {**options_of(ConnectOptions), **options_of(TlsOptions), **options_of(ImageOptions)}


def connect_option(name: str, *short: str, default: str = "", text: str) -> Callable[[_F], _F]:
    """An option of connect by its long name, as `connect_options` declares it; the value is that of its field.

    `text` is its help. `default` tells users the default, if they could not type it.
    """
    return later(
        lambda: _option_of_click(_declared()[name], short, f"{text}  [default: {default}]" if default else text)
    )


def _option_of_click(declared: Option, short: Sequence[str], text: str) -> Callable[[_F], _F]:
    names = (*short, f"--{declared.name}", declared.field)
    if declared.parse is None:
        return click.option(*names, is_flag=True, callback=lambda _ctx, _param, given: declared.value(given), help=text)
    usual = None if declared.default in (None, "", ()) else declared.default
    return click.option(
        *names,
        type=Value(declared.kind, declared.parse, declared.words),
        metavar=declared.kind,
        multiple=declared.many,
        default=usual,
        show_default=usual is not None,
        shell_complete=files if declared.kind == "FILE" else None,
        help=text,
    )


timeout_option = connect_option("connect-timeout", text="Deadline for connecting and the handshake.")


def tls_options(function: _F) -> _F:
    """Adds the options that require TLS and tell how to verify the server."""
    for one in reversed(
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
        function = one(function)
    return function


def trust_of(given: dict[str, Any]) -> dict[str, Any]:
    """Removes the values of `tls_options` from those given; returns them as arguments for `target.with_tls`."""
    from nbdattach.connect_options import TlsOptions, options_of

    found = {declared.field: given.pop(declared.field) for declared in options_of(TlsOptions).values()}
    if not found["verify"]:
        warn_of_no_verify()
    return found


table_option = option(
    "--table",
    "path",
    metavar="FILE",
    default=TABLE,
    show_default=True,
    shell_complete=files,
    help="The table of devices and exports.",
)
