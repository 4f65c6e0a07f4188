# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a server still announces the attached export: each reason to refuse it, and harmless differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nbdattach.attached.same_export import difference
from nbdattach.attached.state import Record
from nbdattach.backends.limits import plan
from nbdattach.errors import NbdattachError
from nbdattach.protocol.export import BlockSize, Export

MIB = 1 << 20
FLAGS = 0x0105  # HAS_FLAGS, SEND_FLUSH, CAN_MULTI_CONN
READ_ONLY = 0x0002
EXPORT = Export("disk", MIB, FLAGS, "newstyle-fixed", "", BlockSize(512, 4096, 65536))
ATTACHED = Record(
    "tag", "nbd://db1/disk", "disk", "netlink", 1, "2026-01-02T03:04:05Z", 42,
    size=MIB, flags=FLAGS, block_size=1024, max_sectors_kb=64,
)  # fmt: skip


def sized(minimum: int, maximum: int) -> Export:
    return replace(EXPORT, block_size=BlockSize(minimum, 4096, maximum))


@pytest.mark.parametrize(
    ("export", "reason"),
    [
        (replace(EXPORT, name=""), "it is the export '' now, 'disk' was attached"),
        (replace(EXPORT, name="disk2"), "it is the export 'disk2' now, 'disk' was attached"),
        (replace(EXPORT, name="\x1b[2J\n"), r"it is the export '\x1b[2J\n' now, 'disk' was attached"),
        (replace(EXPORT, size=MIB - 1), "the export has 1048575 bytes now, 1048576 were attached"),
        (replace(EXPORT, size=MIB + 1), "the export has 1048577 bytes now, 1048576 were attached"),
        (replace(EXPORT, size=0), "the export has 0 bytes now, 1048576 were attached"),
        (replace(EXPORT, flags=FLAGS | READ_ONLY), "the export is read-only now, it was attached read-write"),
        (replace(EXPORT, flags=0x0101), "the export no longer offers send_flush"),
        (replace(EXPORT, flags=0), "the export no longer offers send_flush"),
        (sized(2048, 65536), "the export's minimum block size is 2048 now, 1024 is attached"),
        (sized(1, 65535), "the export takes at most 65535 bytes a request now, 64 KiB was attached"),
        (sized(1, 4096), "the export takes at most 4096 bytes a request now, 64 KiB was attached"),
    ],
)
def test_another_export_is_told_apart_with_the_reason(export: Export, reason: str) -> None:
    assert difference(ATTACHED, export) == reason


@pytest.mark.parametrize(
    "export",
    [
        EXPORT,
        replace(EXPORT, flags=0xFFFF & ~READ_ONLY),
        replace(EXPORT, protocol="oldstyle", description="moved"),
        replace(EXPORT, block_size=None),
        sized(1, 65536),
        sized(1024, 65536),
        sized(512, 65536 + 4095),
        sized(512, (1 << 32) - 1),
    ],
)
def test_what_the_kernel_can_live_with_is_no_difference(export: Export) -> None:
    assert difference(ATTACHED, export) is None


@pytest.mark.parametrize("flags", [FLAGS, FLAGS | READ_ONLY])
def test_what_was_attached_read_only_may_be_either(flags: int) -> None:
    assert difference(replace(ATTACHED, flags=FLAGS | READ_ONLY), replace(EXPORT, flags=flags)) is None


def test_every_feature_that_the_driver_uses_is_missed_by_its_name() -> None:
    """It sends flushes, FUA and trims for as long as the device is attached."""
    record = replace(ATTACHED, flags=0xFFFF & ~READ_ONLY)
    for bit, name in ((2, "send_flush"), (3, "send_fua"), (5, "send_trim")):
        export = replace(EXPORT, flags=record.flags & ~(1 << bit))
        assert difference(record, export) == f"the export no longer offers {name}"


@pytest.mark.parametrize("bit", [0, 4, 6, 7, 9, 10, 11, 15])
def test_a_feature_that_the_driver_does_not_use_is_not_missed(bit: int) -> None:
    record = replace(ATTACHED, flags=0xFFFF, connections=2)
    assert difference(record, replace(EXPORT, flags=0xFFFF & ~(READ_ONLY | 1 << bit))) is None


def test_several_connections_at_once_are_missed_only_where_there_are_several() -> None:
    alone = replace(EXPORT, flags=FLAGS & ~0x0100)
    assert difference(ATTACHED, alone) is None
    assert difference(replace(ATTACHED, connections=2), alone) == "the export no longer offers can_multi_conn"


def test_another_size_is_wanted_only_by_name() -> None:
    """As `resize` does; everything else must still be the same."""
    assert difference(ATTACHED, replace(EXPORT, size=2 * MIB), 2 * MIB) is None
    assert difference(ATTACHED, EXPORT, 2 * MIB) == "the export has 1048576 bytes now, 2097152 were attached"
    assert difference(ATTACHED, replace(EXPORT, size=2 * MIB, name="x"), 2 * MIB) is not None


block_sizes = st.builds(
    BlockSize, st.sampled_from([1, 512, 4096]), st.just(4096), st.sampled_from([4096, 65537, 1 << 25, (1 << 32) - 1])
)
exports = st.builds(
    Export, st.text(max_size=9), st.integers(512, 1 << 50), st.integers(0, 0xFFFF), st.just("newstyle-fixed"),
    st.just(""), st.none() | block_sizes,
)  # fmt: skip


@given(exports, st.booleans(), st.none() | st.sampled_from([512, 4096]))
def test_the_same_server_always_fits(export: Export, read_only: bool, block_size: int | None) -> None:
    """For every attachment: a server that was only restarted is accepted."""
    try:
        shape = plan("nbd://db1", export, read_only, block_size)
    except NbdattachError:
        assume(False)
    record = replace(
        ATTACHED, export=export.name, size=export.size, flags=shape.flags, block_size=shape.block_size,
        max_sectors_kb=shape.max_sectors_kb,
    )  # fmt: skip
    assert difference(record, export) is None
