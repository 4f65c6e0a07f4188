# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts about an export that a server reports in the handshake. No I/O."""

from __future__ import annotations

from nbdattach.immutable import immutable
from nbdattach.protocol.constants import (
    NBD_FLAG_CAN_MULTI_CONN,
    NBD_FLAG_READ_ONLY,
    NBD_FLAG_SEND_WRITE_ZEROES,
    TRANSMISSION_FLAGS,
)


@immutable
class BlockSize:
    """Size constraints of the server, in bytes (NBD_INFO_BLOCK_SIZE). `maximum` is the largest payload."""

    minimum: int
    preferred: int
    maximum: int


@immutable
class Export:
    """One export as the server describes it. `size` is in bytes, `flags` are the 16 transmission flags."""

    name: str
    size: int
    flags: int
    protocol: str  # "newstyle-fixed" | "newstyle" | "oldstyle"
    description: str = ""
    block_size: BlockSize | None = None

    @property
    def read_only(self) -> bool:
        return bool(self.flags & NBD_FLAG_READ_ONLY)

    @property
    def takes_write_zeroes(self) -> bool:
        return bool(self.flags & NBD_FLAG_SEND_WRITE_ZEROES)

    @property
    def can_multi_conn(self) -> bool:
        return bool(self.flags & NBD_FLAG_CAN_MULTI_CONN)

    @property
    def flag_names(self) -> list[str]:
        """Lower-case names without NBD_FLAG_; a bit without a name is "bit_N"."""
        return [TRANSMISSION_FLAGS.get(bit, f"bit_{bit}") for bit in range(16) if self.flags >> bit & 1]


@immutable
class Listed:
    """One export of a server's list. `size` is in bytes, None if the server reports none."""

    name: str
    description: str
    size: int | None
