# SPDX-License-Identifier: GPL-2.0-or-later
"""The command disconnect, and how it finds the attachments that its arguments name."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from nbdattach.cli.offers import attachments_or_targets, tags
from nbdattach.cli.options import debug_option, export_option, json_option
from nbdattach.cli.parameters import argument, option
from nbdattach.cli.report import OnTerminal, each, say, say_over
from nbdattach.cli.types import is_device, seconds
from nbdattach.cli.usage import command, corrected
from nbdattach.errors import Malformed, NotAttached
from nbdattach.text import plain, quoted, typed

if TYPE_CHECKING:
    from nbdattach.api import Attachment


@command()
@argument("attachments", nargs=-1, metavar="[DEVICE|TARGET]...", shell_complete=attachments_or_targets)
@export_option
@option("--tag", metavar="NAME", shell_complete=tags, help="Detach the attachment with this tag.")
@option("--all", "everything", is_flag=True, help="Detach all devices that nbdattach has attached.")
@option("--if-tag", metavar="NAME", shell_complete=tags, help="Leave a device alone if it has another tag.")
@option("--timeout", type=seconds(), default=60.0, show_default=True, help="How long to wait for the kernel.")
@option("--release", is_flag=True, help="Release its users first: unmount, swapoff, ...; end no process.")
@option("--dry-run", is_flag=True, help="With --release: only print the commands.")
@option("--force", is_flag=True, help="Detach even if in use; lose data that cannot be flushed.")
@json_option
@debug_option
def disconnect(
    attachments: tuple[str, ...],
    export: str | None,
    tag: str | None,
    everything: bool,
    if_tag: str | None,
    timeout: float,
    release: bool,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Detach devices, once it is safe.

    If a device is in use (mounted, used as swap, held by another device, open in a process), the command leaves it
    alone and lists its users. It first flushes written data to the server.
    """
    _refuse_wrong_words(attachments, tag, everything, if_tag)
    if dry_run and not release:
        raise Malformed(
            "--dry-run", "needs --release", "nbdattach disconnect --release --dry-run shows what it would do"
        )
    if release and force:
        raise Malformed("--release", "cannot be combined with --force", "--force detaches a device that is in use")
    from nbdattach import api
    from nbdattach.cli import render

    results: list[dict[str, object]] = []

    def one(meant: str | Attachment) -> None:
        device = meant if isinstance(meant, str) else meant.device
        if dry_run:
            results.append(_show_commands(device, if_tag, as_json))
            return
        detach = functools.partial(api.disconnect, meant) if isinstance(meant, str) else meant.disconnect
        try:
            done = detach(timeout, force=force, if_tag=if_tag, release=release, reporter=OnTerminal(device))
        finally:
            say_over("")
        results.append(render.detached_object(device, done))
        if done:
            say(f"{device}: {done}, nothing to do")

    each(_devices_of(attachments, export, tag, everything), one, results=results)
    if as_json:
        click.echo(render.as_json(results))


def _refuse_wrong_words(attachments: tuple[str, ...], tag: str | None, everything: bool, if_tag: str | None) -> None:
    if bool(attachments) + (tag is not None) + everything != 1:
        raise click.UsageError("Give devices or targets, or --tag, or --all.", click.get_current_context())
    port = next((text for text in attachments[1:] if text.isdigit()), None)
    if port:
        better = corrected(click.get_current_context())
        raise Malformed(quoted(port), "a number, not a device", better or "a port is part of the TARGET: HOST:PORT")
    if tag == "" or if_tag == "":
        raise Malformed("--tag" if tag == "" else "--if-tag", "an empty name", "nbdattach status --json shows the tags")


def _show_commands(device: str, if_tag: str | None, as_json: bool) -> dict[str, object]:
    """Prints what --release would do, and raises `DeviceInUse` if something would be left."""
    from nbdattach.device import parse_device
    from nbdattach.operations import detachment, release

    place = parse_device(device)
    if reason := detachment.nothing_to_do(place, None, if_tag):
        say(f"{device}: {reason}, nothing to do")
        return {"device": device, "release": []}
    uses, left = release.planned(place)
    for use in uses if not as_json else ():
        click.echo(use.command)
    if not uses and not left:
        say(f"{device}: nothing to release")
    if left:
        raise release.never(place, left)
    return {"device": device, "release": [[*use.release] for use in uses]}


def _devices_of(
    attachments: tuple[str, ...], export: str | None, tag: str | None, everything: bool
) -> list[str | Attachment]:
    """Paths for devices that the user named; attachments for those found by target or tag, so that no later one is hit.

    Reports names that are not attached, which is no error. Raises `Malformed` for a word that is invalid as both.
    """
    from nbdattach import api
    from nbdattach.attached import names

    if everything:
        return [*_all_of_ours()]
    if tag is not None:
        return [*_those(f"tag {plain(tag)}", api.find(tag=tag))]
    found: dict[str, str | Attachment] = {}
    for text in attachments:
        device = names.find(text)
        if device:
            found[device.path] = device.path
            continue
        for one in _those(plain(text), _attached_to(text, export)):
            found.setdefault(one.device, one)
    return list(found.values())


def _all_of_ours() -> Iterator[Attachment]:
    from nbdattach import api
    from nbdattach.attached import state

    state.refuse_hidden()
    for one in api.attachments():
        if one.has_ended and one.trouble:
            say(f"{one.device}: {one.trouble['error']}")
        elif one.is_foreign:
            say(f"{one.device}: left alone, because another program attached it; name it to detach it")
        else:
            with contextlib.suppress(NotAttached):
                yield api.Attachment.at(one.device)


def _attached_to(text: str, export: str | None) -> list[Attachment]:
    """The target's attachments. Raises `Malformed` if there are none and the word looks like a mistyped device."""
    from nbdattach import api
    from nbdattach.own_server.source import source_of

    devices = text.replace(",", " ").split()
    if len(devices) > 1 and all(map(is_device, devices)):
        raise Malformed(quoted(text), "several devices in one word", f"nbdattach disconnect {' '.join(devices)}")
    found = api.find_source(text)
    if not found and text.startswith("/") and text.lstrip("/").startswith("dev/"):
        raise _no_device(text)
    if not found:
        found = api.find(target=text, export=export)
    if not found and "/" not in text and ":" not in text and not source_of(text):
        raise _no_device(text)
    if not found and text.startswith("/") and not os.path.lexists(text):  # a mount point, mistyped?
        raise Malformed(quoted(text), "no such device, socket or image", "nbdattach status shows the attached devices")
    if len(found) > 1:
        cause = f"attached at {' and '.join(one.device for one in found)}"
        raise Malformed(plain(text), cause, "name the device, or its --tag")
    return found


def _no_device(text: str) -> Malformed:
    from nbdattach.attached import names
    from nbdattach.device import no_device

    if names.tagged(text):
        hint = f"a tag? nbdattach disconnect --tag {typed(text)}"
        return Malformed(quoted(text), "not an nbd device", hint)
    return no_device(text)


def _those(name: str, found: list[Attachment]) -> list[Attachment]:
    if not found:
        say(f"{name}: not attached, nothing to do")
    return found
