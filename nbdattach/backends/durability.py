# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether data that was synced is safe at the server, as far as its flags tell. No I/O.

Without NBD_FLAG_SEND_FLUSH the driver has no write cache to flush (nbd_parse_flags in drivers/block/nbd.c): fsync(2)
succeeds, and the server is sent nothing. A server may still write through, so this is worth a note, and no error.
"""

from __future__ import annotations

from nbdattach.protocol.constants import NBD_FLAG_SEND_FLUSH
from nbdattach.protocol.export import Export

LOSS = "data that was synced may be lost if the server's machine crashes"


def lack_of_flush(export: Export, read_only: bool = False) -> str:
    """What the user should know if nothing is flushed; empty for an export that takes flushes, or no writes."""
    if read_only or export.read_only or export.flags & NBD_FLAG_SEND_FLUSH:
        return ""
    if export.protocol == "none":
        return f"without the handshake the kernel sends no flush: {LOSS}"
    return f"the server offers no flush: {LOSS} (nbd-server offers it with flush = true)"
