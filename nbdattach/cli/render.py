# SPDX-License-Identifier: GPL-2.0-or-later
"""Results for users and programs: makes tables, lines and JSON of our dataclasses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbdattach.cli.failure import error_object
from nbdattach.immutable import as_dict
from nbdattach.text import plain

if TYPE_CHECKING:  # `info` does not need the modules of `doctor` and `status`
    from nbdattach.attached.status import Status
    from nbdattach.connection.client import Checked, Inspected
    from nbdattach.doctor import Finding
    from nbdattach.errors import NbdattachError
    from nbdattach.protocol.export import Listed
    from nbdattach.server_of_ours import Image

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size_text(size: int | None) -> str:
    """Bytes in the largest binary unit: 1 TiB, 10.5 GiB, 512 B; "-" for an unknown size."""
    if size is None:
        return "-"
    power = min(max(size.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{size / (1 << 10 * power):.4g} {_UNITS[power]}"


def as_json(value: object) -> str:
    import json  # most commands write none

    return json.dumps(value, indent=2)


def status_object(one: Status) -> dict[str, object]:
    """The JSON object of nbdattach-status(8); it has "trouble" only if there is some."""
    found = as_dict(one)
    if found["trouble"] is None:
        del found["trouble"]
    return found


def detached_object(device: str | None, reason: str) -> dict[str, object]:
    """Of a command that detaches. `reason`: why there was nothing to do; empty if it has detached the device."""
    return {"device": device, "detached": not reason, "reason": reason or None}


def list_table(exports: Sequence[Listed]) -> str:
    rows = [("NAME", "SIZE", "DESCRIPTION")]
    rows += [(plain(one.name) or "''", size_text(one.size), plain(one.description) or "-") for one in exports]
    return table(rows)


def list_json(server: str, exports: Sequence[Listed]) -> str:
    return as_json({"target": server, "exports": [as_dict(one) for one in exports]})


def info_json(target: str, found: Inspected, refusal: NbdattachError | None = None, image: Image | None = None) -> str:
    """`refusal`: why the export cannot be attached."""
    export = found.export
    return as_json(
        {
            "target": target,
            "export": export.name,
            "description": export.description,
            "size": export.size,
            "flags": export.flag_names,
            "block_size": as_dict(export.block_size) if export.block_size else None,
            "protocol": export.protocol,
            "tls": _tls_object(found),
            "cannot_be_attached": refusal and refusal.cause,
            **({"image": {"path": image.path, "format": image.format, "backing": image.backing}} if image else {}),
        }
    )


def _tls_object(found: Inspected) -> dict[str, object] | None:
    if not found.tls:
        return None
    shown = found.certificate
    return {
        "version": found.tls[0],
        "cipher": found.tls[1],
        "names": shown.names if shown else [],
        "expires": (shown and shown.until) or None,
    }


def info_lines(
    target: str,
    found: Inspected,
    refusal: NbdattachError | None = None,
    image: Image | None = None,
    lacks: Sequence[str] = (),
) -> str:
    """`refusal`: why the export cannot be attached. `lacks`: what an attachment would lack; empty ones are no line."""
    export, sizes = found.export, found.export.block_size
    look = export.read_only and image is not None and image.writable  # a writable image is served read-only for it
    lines = [
        ("target", target),
        ("export", plain(export.name) or "'' (the default export)"),
        ("description", plain(export.description) or "-"),
        ("size", f"{export.size} ({size_text(export.size)})"),
        ("access", "read-only" if export.read_only and not look else "read-write"),
        ("flags", (", ".join(export.flag_names) or "-") + (" (of this look, which is read-only)" if look else "")),
        (
            "block size",
            f"minimum {sizes.minimum}, preferred {sizes.preferred}, maximum {sizes.maximum}"
            if sizes
            else "not announced",
        ),
        ("protocol", export.protocol),
        ("tls", " ".join(found.tls) if found.tls else "no"),
    ]
    if found.certificate:
        names = ", ".join(found.certificate.names) or "?"
        lines.append(("certificate", f"for {names}, until {found.certificate.until or '?'}"))
    if image:
        lines.append(("format", image.format))
        lines += [("backing", plain(one)) for one in image.backing]
    lines += [("note", lack) for lack in lacks if lack]
    if refusal:
        lines.append(("cannot be attached", refusal.cause))
    return "\n".join(f"{key + ':':<12} {value}" for key, value in lines)


def check_object(target: str, found: Checked) -> dict[str, object]:
    return {
        "target": target,
        "ok": found.error is None,
        "handshake_ms": found.handshake_ms,
        "read_ms": found.read_ms,
        "error": error_object(found.error) if found.error else None,
    }


def checks_document(found: Sequence[tuple[str, Checked]]) -> dict[str, object]:
    """The object of the one target, or an object with those of all. `error` is the first failure."""
    checks = [check_object(target, one) for target, one in found]
    if len(checks) == 1:
        return checks[0]
    error = next((one["error"] for one in checks if one["error"]), None)
    return {"ok": error is None, "error": error, "checks": checks}


def check_line(target: str, found: Checked) -> str:
    return f"{target}: ok, handshake {found.handshake_ms} ms, read {found.read_ms} ms"


def findings_json(found: Sequence[Finding]) -> str:
    return as_json({"ok": not any(one.stands_in_the_way for one in found), "findings": [as_dict(one) for one in found]})


def findings_lines(found: Sequence[Finding]) -> str:
    lines = []
    for one in found:
        mark = "!!" if one.stands_in_the_way else "--" if one.remedy else "ok"
        lines.append(f"{mark}  {one.subject}: {one.says}")
        if one.remedy:
            lines.append(f"    {one.remedy}")
    return "\n".join(lines)


def table(rows: Sequence[Sequence[str]], width: int = 0) -> str:
    """Columns as wide as their widest cell; with a `width`, long cells of the last two columns are cut to fit."""
    if not rows:
        return ""
    widths = _widths(rows)
    if width:
        _fit(widths, width)
    lines = []
    for row in rows:
        lines.append("  ".join(_cell(text, wide) for text, wide in zip(row, widths, strict=True)).rstrip())
    return "\n".join(lines)


def table_width(rows: Sequence[Sequence[str]], least: int) -> int:
    """Columns that the table needs if the last two columns are cut to so many."""
    *widths, first, second = _widths(rows)
    widths += [min(first, least), min(second, least)]
    return sum(widths) + 2 * (len(widths) - 1)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(_columns, column)) for column in zip(*rows, strict=True)]


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, broken at blanks where there are some."""
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if _columns(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while _columns(word) > width > 1:
            head = word
            while _columns(head) > width:
                head = head[:-1]
            lines.append(head)
            word = word[len(head) :]
        line = word
    return [*lines, line]


def _cell(text: str, wide: int) -> str:
    """`text` in exactly `wide` columns of a terminal, cut with a ~ if it is longer."""
    if _columns(text) > wide:
        while _columns(text) > wide - 1:
            text = text[:-1]
        text += "~"
    return text + " " * (wide - _columns(text))


def _columns(text: str) -> int:
    """Columns that a terminal takes for it: two for East Asian wide characters."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(2 if unicodedata.east_asian_width(ch) in "WF" else 1 for ch in text)


def _fit(widths: list[int], width: int) -> None:
    """Takes from the wider of the last two columns until the line fits."""
    least = 8
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths[-2:]) > least:
        widths[-1 if widths[-1] >= widths[-2] else -2] -= 1
