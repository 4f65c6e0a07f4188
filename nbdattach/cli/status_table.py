# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of `status`: its columns, those that a user may choose, and how it fits a terminal. Pure.

A column is a field of the JSON object. The usual table leaves columns out on a narrow terminal, the least important
first, and cuts the target and the mount points; chosen columns, and a table that a program reads, are never cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nbdattach.cli.render import size_text, status_object, table, table_width
from nbdattach.errors import Malformed
from nbdattach.text import plain, quoted

if TYPE_CHECKING:
    from nbdattach.attached.status import Status

# Left out in this order where the terminal is too narrow.
_LESS_IMPORTANT = ("TLS", "RO", "TAG", "SIZE")
# Columns that a target or mount point needs at least, to tell anything.
_LEAST = 8
_FIELDS = (
    *("device", "index", "state", "tag", "target", "export", "size", "block_size", "read_only", "backend"),
    *("connections", "tls", "pid", "since", "mounts", "holders", "also", "server", "image", "trouble"),
)
_SIZES = ("size", "block_size")
# Of a field that is an object, the part that tells most.
_PARTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "tls": lambda tls: tls["version"],
    "server": lambda server: " ".join(server["command"]),
    "image": lambda image: image["path"],
    "trouble": lambda trouble: trouble["error"] or "trying",
}


def usual_table(found: Sequence[Status], width: int, *, headings: bool = True, in_bytes: bool = False) -> str:
    """One line a device, at most `width` columns, 0 for any; below them a line for each device in trouble."""
    size = str if in_bytes else size_text
    columns: dict[str, Callable[[Status], str]] = {
        "DEVICE": lambda one: one.device,
        "STATE": lambda one: one.state,
        "SIZE": lambda one: size(one.size),
        "RO": lambda one: "yes" if one.read_only else "no",
        "TLS": lambda one: one.tls["version"] if one.tls else "no",
        "TAG": lambda one: plain(own_tag(one) or "-"),
        "TARGET": lambda one: plain(_target(one)),
        "MOUNTED": lambda one: plain(", ".join(one.mounts) or ", ".join(one.holders) or "-"),
    }
    if not any(map(own_tag, found)):
        del columns["TAG"]
    rows = _rows(columns, found)
    for name in _LESS_IMPORTANT:
        if width and table_width(rows, _LEAST) > width:
            columns = {head: text for head, text in columns.items() if head != name}
            rows = _rows(columns, found)
    shown = rows if headings else rows[1:]
    lines = [table(shown, width)] if shown else []
    return "\n".join([*lines, *(_trouble_line(one) for one in found if one.trouble)])


def _rows(columns: Mapping[str, Callable[[Status], str]], found: Sequence[Status]) -> list[list[str]]:
    return [[*columns], *([text(one) for text in columns.values()] for one in found)]


def own_tag(one: Status) -> str | None:
    """The tag if it says more than the target; None if it is the default one."""
    return None if one.tag in (None, one.target, one.image and one.image.path) or one.server else one.tag


def _target(one: Status) -> str:
    """An image, by its path; else the server."""
    if one.image:
        return f"{one.image.path} ({one.image.format})"
    return one.tag if one.server and one.tag else one.target or "?"


def _trouble_line(one: Status) -> str:
    trouble = one.trouble or {}
    when = f", next try {trouble['next_try']}" if trouble["next_try"] else ""
    return f"{one.device}: {one.state} since {trouble['since']}{when}: {plain(trouble['error'] or 'trying')}"


# -- chosen columns ----------------------------------------------------------------------------------------------------


def chosen(text: str) -> list[str]:
    """The fields that the user names, separated by commas; `all` for each. Raises `Malformed`."""
    names = [word.strip().lower().replace("-", "_") for word in text.split(",")]
    if names == ["all"]:
        return [*_FIELDS]
    for name, word in zip(names, text.split(","), strict=True):
        if name not in _FIELDS:
            raise Malformed("--output", f"no column {quoted(word.strip())}", f"the columns are {', '.join(_FIELDS)}")
    return names


def chosen_table(
    found: Sequence[Status], fields: Sequence[str], *, headings: bool = True, in_bytes: bool = False
) -> str:
    """One line a device with these fields of the JSON object."""
    rows = [[_text(field, value, in_bytes) for field, value in _part(one, fields).items()] for one in found]
    heads = [[field.upper().replace("_", "-") for field in _distinct(fields)]]
    return table([*heads, *rows] if headings else rows, 0)


def objects(found: Sequence[Status], fields: Sequence[str] | None) -> list[dict[str, object]]:
    """For JSON: all fields, or only these."""
    return [_part(one, fields) if fields else status_object(one) for one in found]


def _part(one: Status, fields: Sequence[str]) -> dict[str, Any]:
    whole = status_object(one)
    return {field: whole.get(field) for field in _distinct(fields)}


def _distinct(fields: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(fields))


def _text(field: str, value: Any, in_bytes: bool) -> str:
    """A value in one cell."""
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return plain(", ".join(value))
    if isinstance(value, dict):
        return plain(_PARTS[field](value))
    return size_text(value) if field in _SIZES and not in_bytes else plain(str(value))
