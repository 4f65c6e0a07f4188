# SPDX-License-Identifier: GPL-2.0-or-later
"""The command disconnect, and how it finds the attachments that its arguments name."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from nbdattach.cli.offers import attachments_or_targets, tags
from nbdattach.cli.options import debug_option, export_option
from nbdattach.cli.parameters import argument, option
from nbdattach.cli.report import OnTerminal, each, say, say_over
from nbdattach.cli.types import device_of, seconds
from nbdattach.cli.usage import command
from nbdattach.errors import Malformed, NotAttached
from nbdattach.text import plain

if TYPE_CHECKING:
    from nbdattach.api import Attachment


@command()
@argument("attachments", nargs=-1, metavar="[DEVICE|TARGET]...", shell_complete=attachments_or_targets)
@export_option
@option("--tag", metavar="NAME", shell_complete=tags, help="Detach the attachment with this tag.")
@option("--all", "everything", is_flag=True, help="Detach all devices that nbdattach has attached.")
@option("--if-tag", metavar="NAME", shell_complete=tags, help="Leave a device alone if it has another tag.")
@option("--timeout", type=seconds(), default=60.0, show_default=True, help="How long to wait for the kernel.")
@option("--force", is_flag=True, help="Detach even if in use; lose data that cannot be flushed.")
@debug_option
def disconnect(
    attachments: tuple[str, ...],
    export: str | None,
    tag: str | None,
    everything: bool,
    if_tag: str | None,
    timeout: float,
    force: bool,
) -> None:
    """Detach devices, once it is safe.

    If a device is in use (mounted, used as swap, held by another device, open in a process), the command leaves it
    alone and lists its users. It first flushes written data to the server.
    """
    if bool(attachments) + (tag is not None) + everything != 1:
        raise click.UsageError("Give devices or targets, or --tag, or --all.", click.get_current_context())
    if tag == "" or if_tag == "":
        raise Malformed("--tag" if tag == "" else "--if-tag", "an empty name", "nbdattach status --json shows the tags")
    from nbdattach import api

    wanted = _devices_of(attachments, export, tag, everything)

    def one(meant: str | Attachment) -> None:
        device = meant if isinstance(meant, str) else meant.device
        detach = functools.partial(api.disconnect, meant) if isinstance(meant, str) else meant.disconnect
        try:
            done = detach(timeout, force=force, if_tag=if_tag, reporter=OnTerminal(device))
        finally:
            say_over("")
        if done:
            say(f"{device}: {done}, nothing to do")

    each(wanted, one)


def _devices_of(
    attachments: tuple[str, ...], export: str | None, tag: str | None, everything: bool
) -> list[str | Attachment]:
    """Paths for devices that the user named; attachments for those found by target or tag, so that no later one is hit.

    Reports names that are not attached, which is no error. Raises `Malformed` for a word that is invalid as both.
    """
    from nbdattach import api

    if everything:
        return [*_all_of_ours()]
    if tag is not None:
        return [*_those(f"tag {plain(tag)}", api.find(tag=tag))]
    found: dict[str, str | Attachment] = {}
    for text in attachments:
        try:
            device = device_of(text).path
            found[device] = device
        except Malformed as no_device:
            for one in _those(plain(text), _attached_to(text, export, no_device)):
                found.setdefault(one.device, one)
    return list(found.values())


def _all_of_ours() -> Iterator[Attachment]:
    from nbdattach import api
    from nbdattach.attached import state

    state.refuse_hidden()
    for one in api.attachments():
        if one.target is None:
            say(f"{one.device}: left alone, because another program attached it; name it to detach it")
        else:
            with contextlib.suppress(NotAttached):
                yield api.Attachment.at(one.device)


def _attached_to(text: str, export: str | None, no_device: Malformed) -> list[Attachment]:
    """The target's attachments. Raises `no_device` if there are none and the word looks like a mistyped device."""
    from nbdattach import api
    from nbdattach.own_server.source import source_of

    found = api.find_source(text)
    if not found and text.startswith("/dev/"):
        raise no_device
    if not found:
        found = api.find(target=text, export=export)
    if not found and "/" not in text and ":" not in text and not source_of(text):
        raise no_device
    if len(found) > 1:
        cause = f"attached at {' and '.join(one.device for one in found)}"
        raise Malformed(plain(text), cause, "name the device, or its --tag")
    return found


def _those(name: str, found: list[Attachment]) -> list[Attachment]:
    if not found:
        say(f"{name}: not attached, nothing to do")
    return found
