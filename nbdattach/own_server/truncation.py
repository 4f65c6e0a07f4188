# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a qcow2 image has lost its end, as by a copy that was broken off: QEMU opens it, and reads zeroes there.

A few reads tell whether clusters that are in use lie behind the end of the file (QEMU's docs/interop/qcow2). That may
also be from a server that was killed after it had taken clusters, and harms nothing; then only a check of the whole
image tells, which reads all its tables.
"""

from __future__ import annotations

import contextlib
import struct
from typing import BinaryIO

from nbdattach.host import programs

# Offsets in the header: cluster_bits, refcount_table_offset and refcount_table_clusters, refcount_order (version 3).
_CLUSTER_BITS, _TABLE, _ORDER = 20, 48, 96
_VERSION_2_ORDER = 4  # 16 bits each
_MAX_CLUSTER_BITS, _MAX_ORDER = 21, 6
_MAX_TABLE = 8 << 20  # bytes; QEMU's own limit
_OFFSET = ~0x1FF
_CORRUPT = 2  # exit code of qemu-img check


def seems_cut_off(path: str) -> bool:
    """Whether a cluster that is in use begins behind the end of the file, or a table does."""
    with open(path, "rb") as file, contextlib.suppress(struct.error, OverflowError, ValueError, OSError):
        head = file.read(512)
        (bits,) = struct.unpack_from(">I", head, _CLUSTER_BITS)
        offset, clusters = struct.unpack_from(">QI", head, _TABLE)
        order = struct.unpack_from(">I", head, _ORDER)[0] if head[7] >= 3 else _VERSION_2_ORDER
        if bits > _MAX_CLUSTER_BITS or order > _MAX_ORDER:
            return False  # QEMU refuses it
        table = _at(file, offset, min(clusters << bits, _MAX_TABLE))
        last = len(table.rstrip(b"\0")) - 1
        if last < 0:
            return True
        number = last // 8
        (block_offset,) = struct.unpack_from(">Q", table, number * 8)
        block = _at(file, block_offset & _OFFSET, 1 << bits).rstrip(b"\0")
        if not block:
            return True
        in_block = (len(block) - 1) * 8 >> order
        cluster = (number << (bits + 3 - order)) + in_block
        return bool(file.seek(0, 2) <= cluster << bits)
    return True


def _at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def has_errors(path: str, qemu_img: str) -> bool:
    """By QEMU's own check of the whole image; it may take minutes for a large one."""
    return programs.run(qemu_img, "check", "-q", "-U", "-f", "qcow2", path).returncode == _CORRUPT
