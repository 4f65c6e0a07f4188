# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the export that a server announces now is the one that is attached. No I/O.

Promise 7 of the contract: the same size, no fewer rights, limits that the kernel already keeps to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbdattach.protocol.constants import (
    NBD_FLAG_CAN_MULTI_CONN,
    NBD_FLAG_READ_ONLY,
    NBD_FLAG_SEND_FLUSH,
    NBD_FLAG_SEND_FUA,
    NBD_FLAG_SEND_TRIM,
    TRANSMISSION_FLAGS,
)
from nbdattach.protocol.export import Export
from nbdattach.text import quoted

if TYPE_CHECKING:
    from nbdattach.attached.state import Record

# Features that the driver uses, and cannot give up while the device is attached (nbd_parse_flags, nbd_set_size).
_USED_FLAGS = NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM


def difference(record: Record, export: Export, size: int | None = None) -> str | None:
    """The difference between `export` and the attached one; None if `export` can take its place.

    `size` is the expected one in bytes, if it is not that of the record.
    """
    wanted = record.size if size is None else size
    if export.name != record.export:
        return f"it is the export {quoted(export.name)} now, {quoted(record.export)} was attached"
    if export.size != wanted:
        return f"the export has {export.size} bytes now, {wanted} were attached"
    if export.read_only and not record.flags & NBD_FLAG_READ_ONLY:
        return "the export is read-only now, it was attached read-write"
    used = _USED_FLAGS | (NBD_FLAG_CAN_MULTI_CONN if record.connections > 1 else 0)
    gone = record.flags & used & ~export.flags
    if gone:
        names = ", ".join(name for bit, name in TRANSMISSION_FLAGS.items() if gone >> bit & 1)
        return f"the export no longer offers {names}"
    sizes = export.block_size
    if sizes and sizes.minimum > record.block_size:
        return f"the export's minimum block size is {sizes.minimum} now, {record.block_size} is attached"
    if sizes and sizes.maximum < record.max_sectors_kb * 1024:
        return f"the export takes at most {sizes.maximum} bytes a request now, {record.max_sectors_kb} KiB was attached"
    return None
