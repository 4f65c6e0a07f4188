# SPDX-License-Identifier: GPL-2.0-or-later
"""The note for a server that takes no flush. No I/O."""

from __future__ import annotations

import pytest

from nbdattach.backends.durability import lack_of_flush
from nbdattach.protocol.export import Export

READ_WRITE, READ_ONLY, FLUSH, FUA = 0x0001, 0x0003, 0x0005, 0x0009


def export(flags: int, protocol: str = "newstyle-fixed") -> Export:
    return Export("disk", 1 << 20, flags, protocol)


@pytest.mark.parametrize("flags", [0, READ_WRITE, FUA])
def test_export_that_takes_writes_and_no_flush_is_told(flags: int) -> None:
    """The driver uses FUA only beside flush."""
    assert lack_of_flush(export(flags)) == (
        "the server offers no flush: data that was synced may be lost if the server's machine crashes "
        "(nbd-server offers it with flush = true)"
    )


def test_without_the_handshake_the_server_is_not_to_blame() -> None:
    assert lack_of_flush(export(READ_WRITE, "none")) == (
        "without the handshake the kernel sends no flush: "
        "data that was synced may be lost if the server's machine crashes"
    )


@pytest.mark.parametrize(
    ("flags", "read_only"), [(FLUSH, False), (READ_ONLY, False), (READ_WRITE, True), (FLUSH, True)]
)
def test_export_with_flush_or_without_writes_needs_no_note(flags: int, read_only: bool) -> None:
    assert lack_of_flush(export(flags), read_only) == ""
