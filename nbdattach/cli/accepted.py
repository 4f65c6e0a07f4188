# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a command line is accepted: by the parsers, and by what the commands themselves refuse. For errors only.

Nothing is run. A hint with a command that is refused as well would be no hint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from nbdattach.attached import names
from nbdattach.cli.kinds import is_device, is_image, is_place, may_be_path
from nbdattach.cli.types import is_device as is_ours
from nbdattach.cli.types import target_of
from nbdattach.device import whole_device
from nbdattach.errors import Malformed

# Commands that take any path that leads to a device.
_BY_ANY_PATH = ("disconnect", "status", "reconnect", "resize")


def is_accepted(line: Sequence[str], group: click.Group) -> bool:
    """Whether the command line takes it. Runs nothing."""
    name, *words = line
    if name == "--version":
        return True
    if name not in group.commands or not all(map(str.isprintable, line)):
        return False
    try:
        with (
            click.Context(group, info_name="nbdattach") as root,
            group.commands[name].make_context(name, words, parent=root) as made,
        ):
            given = made.params
        for text in (*_texts(given.get("target")), *_texts(given.get("targets"))):
            if is_device(text) or text.isdigit():
                return False
            if not (text.startswith("[ ") or may_be_path(text)):
                trust = {name: given[name] for name in _fields_of_tls() if name in given}
                target_of(text, given.get("export"), trust)
    except (click.UsageError, Malformed):
        return False
    attachments = _texts(given.get("attachments"))
    of_ours = [*_texts(given.get("device")), *_texts(given.get("devices"))]
    others = any(map(is_device, attachments))
    of_ours += [text for text in attachments if text.startswith("/dev/") or (others and not is_place(text))]
    if name in _BY_ANY_PATH:
        of_ours = [text for text in of_ours if not text.startswith(names.LINKS)]
    if not all(is_ours(text) or text == "DEVICE" for text in of_ours):
        return False
    if any(text.isdigit() or whole_device(text) for text in attachments):  # a number, or a partition
        return False
    try:
        return not _is_refused(name, given, group)
    except Malformed:
        return False


def _is_refused(name: str, given: dict[str, Any], group: click.Group) -> bool:
    """Whether the command refuses these values, which its parser takes. Raises `Malformed` for some of them."""
    from nbdattach.connect_options import ImageOptions, TlsOptions, options_of

    def some(record: type[ImageOptions] | type[TlsOptions]) -> bool:
        fields = [one for one in options_of(record).values() if one.field in given]
        return any(given[one.field] != one.default for one in fields)

    if name == "disconnect":
        for text in given["attachments"]:
            if is_image(text) and given["export"] is not None:
                return True
            if ":" in text and not text.startswith("[ ") and not may_be_path(text):
                target_of(text, given["export"])
        named = bool(given["attachments"]) + (given["tag"] is not None) + given["everything"]
        return named != 1 or (given["dry_run"] and not given["release"]) or (given["release"] and given["force"])
    if name in ("up", "down"):
        ways = bool(given["devices"]) + given["everything"]
        return ways > 1 or not (ways or given.get("only_check"))
    if name == "help":
        return given["name"] not in (None, *group.commands)
    if name == "status" and given["output"] is not None:
        from nbdattach.cli import status_table

        status_table.chosen(given["output"])
    if name == "reconnect" and given["target"] is None:
        return given["export"] is not None or some(TlsOptions)
    target_of("localhost", None, {field: given[field] for field in _fields_of_tls() if field in given})
    if given.get("read_only") and given.get("read_write"):
        return True
    has_size, has_none = given.get("raw_size") is not None, bool(given.get("no_handshake"))
    for text in (*_texts(given.get("target")), *_texts(given.get("targets"))):
        is_brackets = text.startswith("[ ")
        if is_brackets or is_image(text):
            if name == "reconnect" or has_none or given.get("also") or given.get("swap") or some(TlsOptions):
                return True
            if (some(ImageOptions) or has_size) if is_brackets else given.get("export"):
                return True
        elif has_size != has_none or (some(ImageOptions) and not text.startswith("/")):
            return True
    return False


def _fields_of_tls() -> list[str]:
    from nbdattach.connect_options import TlsOptions, options_of

    return [declared.field for declared in options_of(TlsOptions).values()]


def _texts(value: object) -> list[str]:
    return [*value] if isinstance(value, tuple) else [str(value)] if value else []
