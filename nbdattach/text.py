# SPDX-License-Identifier: GPL-2.0-or-later
"""Text from a server: lossless when it is sent back, and safe and short when it is shown to a user."""

from __future__ import annotations

# Long enough for any honest name or sentence, short enough to keep an error on one line.
MAX_SHOWN = 200


def from_wire(data: bytes) -> str:
    """The peer's bytes as text; `to_wire` gives the same bytes back, even if they are not UTF-8."""
    return data.decode("utf-8", "surrogateescape")


def to_wire(text: str) -> bytes:
    """The bytes that `from_wire` got, or else `text` as UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def plain(text: str) -> str:
    """`text` without control, format or other unprintable characters, cut to `MAX_SHOWN` characters."""
    return _escaped(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...")


def _escaped(text: str) -> str:
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode("ascii") for ch in text)


def quoted(text: str) -> str:
    """`plain(text)` in single quotes; quotes and backslashes in it are escaped."""
    return "'" + plain(text.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def uuid_text(data: bytes) -> str:
    """16 bytes as a UUID is written. The module uuid would load much more."""
    digits = data.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def typed(word: str) -> str:
    """All of `word` as it is typed in a shell, in quotes if it needs them: cut, it would name another thing.

    As bash and zsh have it ($'…') if it has characters that cannot be shown.
    """
    import shlex  # errors only

    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(map(_in_quotes, word)) + "'"


def _in_quotes(ch: str) -> str:
    if ch in "\\'":
        return "\\" + ch
    return ch if ch.isprintable() else "".join(f"\\{byte:03o}" for byte in to_wire(ch))
