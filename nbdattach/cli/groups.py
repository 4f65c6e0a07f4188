# SPDX-License-Identifier: GPL-2.0-or-later
"""The headings under which `--help` of a command shows its options. Other options come first, under "Options"."""

from __future__ import annotations

from collections.abc import Iterable

_GROUPS = {
    "While the server is away": ("on-loss", "dead-peer", "io-timeout", "also", "no-reconnect"),
    "TLS": ("tls", "tls-ca", "tls-cert", "tls-key", "tls-hostname", "tls-psk", "tls-no-verify", "tls-transport"),
    "Disk images": ("format", "snapshot", "cache", "discard", "offset"),
    "Servers without a handshake": ("no-handshake", "size"),
}
# Of a command with few options, groups would only make the list longer.
_FEW = 20


def grouped(options: Iterable[tuple[str, tuple[str, str]]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headings, each with its lines, for the lines of options by their long names."""
    lines = dict(options)
    groups = _GROUPS if len(lines) > _FEW else {}
    found = [(title, [lines.pop(name) for name in names if name in lines]) for title, names in groups.items()]
    return [(title, rows) for title, rows in [("Options", [*lines.values()]), *found] if rows]
