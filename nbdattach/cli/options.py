# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several commands share, and the functions that combine their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from nbdattach import option_values
from nbdattach.cli.offers import exports, files
from nbdattach.cli.report import warn_of_no_verify
from nbdattach.cli.types import TABLE, seconds

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


timeout_option = click.option(
    "--connect-timeout",
    type=seconds(option_values.LEAST_CONNECT_TIMEOUT),
    default=30.0,
    show_default=True,
    help="Deadline for connecting and the handshake.",
)


def _file_option(name: str, text: str) -> Callable[[_F], _F]:
    return click.option(name, metavar="FILE", shell_complete=files, help=text)


def tls_options(function: _F) -> _F:
    """Adds the options that require TLS and tell how to verify the server."""
    for option in reversed(
        (
            click.option("--tls", is_flag=True, help="Require TLS, as nbds:// does."),
            _file_option("--tls-ca", "Trusted authorities: a PEM file, or a directory with certificates."),
            _file_option("--tls-cert", "The client's certificate."),
            _file_option("--tls-key", "The client's key.  [default: in the certificate's file]"),
            click.option(
                "--tls-hostname", metavar="NAME", help="Name in the server's certificate.  [default: TARGET's host]"
            ),
            _file_option("--tls-psk", "A pre-shared key, as psktool writes it."),
            click.option("--tls-no-verify", is_flag=True, help="Accept any certificate."),
        )
    ):
        function = option(function)
    return function


def trust_of(options: dict[str, Any]) -> dict[str, Any]:
    """Removes the values of `tls_options` from the options; returns them as arguments for `target.with_tls`."""
    names = {
        "required": "tls", "ca": "tls_ca", "cert": "tls_cert", "key": "tls_key", "hostname": "tls_hostname",
        "psk": "tls_psk",
    }  # fmt: skip
    found = {name: options.pop(option) for name, option in names.items()}
    found["verify"] = not options.pop("tls_no_verify")
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
