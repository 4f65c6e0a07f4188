# SPDX-License-Identifier: GPL-2.0-or-later
"""The notice that nbdkit's filter tls-fallback shows to a client without TLS in place of each export. No I/O.

Source: nbdkit-tls-fallback-filter(1), and nbdkit 1.32: 512 bytes, read-only, no flush, no block sizes; the text below,
then zeros. It is refused: the server means it for the user, and an attached notice looks like a damaged disk. Only the
text tells it from a small disk, so the export must be entered and read. A text of the server's own is not recognised.
"""

from __future__ import annotations

from nbdattach.errors import Refused, TlsFailed
from nbdattach.protocol import transmission
from nbdattach.protocol.constants import NBD_FLAG_SEND_FLUSH
from nbdattach.protocol.export import Export
from nbdattach.protocol.options import advice_of_tls
from nbdattach.protocol.steps import Steps
from nbdattach.protocol.target import Target

SIZE = 512
TEXT = b"This NBD server requires TLS authentication before it will serve useful data."
COOKIE = 0x746C736E6F746963  # "tlsnotic"


def may_be_one(target: Target, export: Export) -> bool:
    """Whether it looks like the notice from outside. No export of QEMU does: each has flush and block sizes."""
    if target.tls or export.size != SIZE or export.block_size:
        return False
    return export.read_only and not export.flags & NBD_FLAG_SEND_FLUSH


def refuse(target: Target, export: Export) -> Steps[None]:
    """Reads the entered export if it may be the notice. If it is, leaves the server and raises `TlsFailed`."""
    if not may_be_one(target, export):
        return
    try:
        content = yield from transmission.read(target.uri, 0, SIZE, COOKIE)
    except Refused:
        return  # it may be a disk with a bad sector
    if content.rstrip(b"\n\0") != TEXT:
        return
    yield from transmission.disconnect()
    cause = "the server requires TLS: without it, it shows a notice of 512 bytes in place of the export"
    raise TlsFailed(target.uri, cause, advice_of_tls(target))
