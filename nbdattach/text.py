# SPDX-License-Identifier: GPL-2.0-or-later
"""Text that came over the wire: kept whole for the way back, made safe and short where a person reads it."""

from __future__ import annotations

# Long enough for any honest name or sentence, short enough to keep an error on one line.
MAX_SHOWN = 200


def from_wire(data: bytes) -> str:
    """Bytes of the peer as text; what is no UTF-8 survives the way back through `to_wire`."""
    return data.decode("utf-8", "surrogateescape")


def to_wire(text: str) -> bytes:
    """The bytes `from_wire` made `text` of, or its UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def plain(text: str) -> str:
    """`text` without control, format or other unprintable characters, cut to `MAX_SHOWN` characters."""
    cut = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode("ascii") for ch in cut)


def quoted(text: str) -> str:
    """`plain(text)` in single quotes; quotes and backslashes of its own are escaped."""
    return "'" + plain(text.replace("\\", "\\\\").replace("'", "\\'")) + "'"
