# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions for click's shell_complete=: each lists the words that a shell offers when the user presses Tab."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from nbdattach.cli.types import TABLE, target_of

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from nbdattach.cli.completion import Offer
    from nbdattach.protocol.target import Target


def free_devices(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    from nbdattach.cli import completion

    return _items(completion.free_devices(typed))


def attached_devices(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    from nbdattach.cli import completion

    return _items(completion.attached_devices(typed))


def table_devices(ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    from nbdattach.cli import completion

    return _items(completion.table_devices(typed, ctx.params.get("path") or TABLE))


def targets(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    from nbdattach.cli import completion

    return files(ctx, param, typed) if typed.startswith("/") else _items(completion.targets(typed))


def attachments_or_targets(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    from nbdattach.cli import completion

    return _items(completion.attached_devices(typed) or completion.targets(typed))


def tags(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    from nbdattach.cli import completion

    return _items(completion.tags(typed))


def exports(ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Exports of the server on the command line; click leaves arguments before an incomplete option in `args`."""
    from nbdattach.cli import completion
    from nbdattach.connect_options import TlsOptions, options_of

    def place() -> Target:
        trust = {
            option.field: ctx.params[option.field]
            for option in options_of(TlsOptions).values()
            if option.field in ctx.params
        }
        return target_of(ctx.params.get("target") or ctx.args[0], None, trust)

    return _items(completion.exports(typed, place))


def files(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(typed, type="file")]


def _items(offers: Sequence[Offer]) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(offer.word, help=offer.help) for offer in offers]
