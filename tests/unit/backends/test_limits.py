# SPDX-License-Identifier: GPL-2.0-or-later
"""From an export and the user's options to the kernel's settings: every branch of the arithmetic. No I/O."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nbdattach.backends.limits import MAX_REQUEST_KB, MAX_SIZE, PAGE, Geometry, plan
from nbdattach.errors import KernelRefused, Malformed, NbdattachError, Refused
from nbdattach.protocol.export import BlockSize, Export

THING = "nbd://db1/disk"
FLAGS = 0x0105  # HAS_FLAGS, SEND_FLUSH, CAN_MULTI_CONN
READ_ONLY = 0x0002
MIB = 1 << 20


def export(size: int = MIB, sizes: tuple[int, int, int] | None = None, flags: int = FLAGS) -> Export:
    return Export("disk", size, flags, "newstyle-fixed", "", BlockSize(*sizes) if sizes else None)


def refused(one: Export, block_size: int | None = None) -> NbdattachError:
    with pytest.raises(NbdattachError) as caught:
        plan(THING, one, block_size=block_size)
    return caught.value


def test_export_without_block_sizes_has_sectors_and_large_requests() -> None:
    assert plan(THING, export()) == Geometry(2048, 512, 0, 1024, FLAGS)


# -- size and tail -----------------------------------------------------------------------------------------------------


@pytest.mark.row(9)
@pytest.mark.parametrize(
    ("size", "block_size", "blocks", "tail"),
    [
        (512, None, 1, 0),
        (513, None, 1, 1),
        (1023, None, 1, 511),
        (1024, None, 2, 0),
        (4096, 4096, 1, 0),
        (8191, 4096, 1, 4095),
        ((1 << 40) + 1, None, 1 << 31, 1),
        (MAX_SIZE, None, (1 << 54) - 1, 511),
        (MAX_SIZE - 511, None, (1 << 54) - 1, 0),
        (MAX_SIZE, 4096, (1 << 51) - 1, 4095),
    ],
)
def test_size_is_whole_blocks_and_a_tail(size: int, block_size: int | None, blocks: int, tail: int) -> None:
    found = plan(THING, export(size), block_size=block_size)
    assert (found.blocks, found.tail) == (blocks, tail)
    assert found.size == size - tail


@pytest.mark.row(9)
@pytest.mark.parametrize("size", [1 << 63, (1 << 63) + 512, (1 << 64) - 1])
def test_size_that_the_kernel_cannot_hold_is_e2big(size: int) -> None:
    error = refused(export(size))
    assert type(error) is KernelRefused
    assert str(error) == f"{THING}: an export of {size} bytes: Argument list too long (E2BIG)"
    assert error.hint == "the kernel supports at most 9223372036854775807 bytes"
    assert error.exit_code == 6


@pytest.mark.row(9)
@pytest.mark.parametrize(
    ("size", "sizes", "block_size", "block"),
    [
        (0, None, None, 512),
        (1, None, None, 512),
        (511, None, None, 512),
        (4095, (4096, 4096, 65536), None, 4096),
        (1023, None, 1024, 1024),
    ],
)
def test_export_without_a_whole_block_is_refused(
    size: int, sizes: tuple[int, int, int] | None, block_size: int | None, block: int
) -> None:
    error = refused(export(size, sizes), block_size)
    assert type(error) is Refused
    assert str(error) == f"{THING}: the export has {size} bytes, less than one block of {block}"
    assert (error.hint, error.exit_code) == ("is the image behind it empty?", 4)


# -- block size --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("minimum", "block"), [(1, 512), (2, 512), (512, 512), (1024, 1024), (4096, 4096)])
def test_block_size_is_the_servers_minimum_and_at_least_a_sector(minimum: int, block: int) -> None:
    assert plan(THING, export(sizes=(minimum, 4096, 65536))).block_size == block


@pytest.mark.parametrize("minimum", [8192, 65536])
@pytest.mark.parametrize("block_size", [None, 512, 4096, 65536, 7])
def test_minimum_over_a_page_is_refused_whatever_is_wished(minimum: int, block_size: int | None) -> None:
    error = refused(export(sizes=(minimum, 65536, 65536)), block_size)
    assert type(error) is KernelRefused
    assert str(error) == f"{THING}: the server's minimum block size is {minimum}, but the kernel accepts at most 4096"
    assert error.hint == "use a server with a smaller minimum"
    assert error.exit_code == 6


@pytest.mark.parametrize("wanted", [512, 1024, 2048, 4096])
@pytest.mark.parametrize("sizes", [None, (1, 4096, 65536), (512, 512, 65536)])
def test_wished_block_size_is_taken(wanted: int, sizes: tuple[int, int, int] | None) -> None:
    found = plan(THING, export(sizes=sizes), block_size=wanted)
    assert (found.block_size, found.blocks * wanted, found.tail) == (wanted, MIB, 0)


@pytest.mark.parametrize(
    "wanted", [-4096, -1, 0, 1, 2, 256, 511, 513, 1000, 1536, 3072, 4095, 4097, 8192, 65536, 1 << 64]
)
def test_block_size_that_the_kernel_does_not_take_is_malformed(wanted: int) -> None:
    error = refused(export(sizes=(1, 4096, 65536)), wanted)
    assert type(error) is Malformed
    assert str(error) == f"--block-size {wanted}: not a block size that the kernel accepts"
    assert error.hint == "use one of 512, 1024, 2048, 4096"
    assert error.exit_code == 2


@pytest.mark.parametrize(("wanted", "minimum"), [(512, 1024), (512, 4096), (1024, 4096), (2048, 4096)])
def test_block_size_below_the_servers_minimum_is_malformed(wanted: int, minimum: int) -> None:
    error = refused(export(sizes=(minimum, 4096, 65536)), wanted)
    assert type(error) is Malformed
    assert str(error) == f"--block-size {wanted}: {THING} requires at least {minimum}"
    assert error.hint == f"leave it out, or use {minimum}"
    assert error.exit_code == 2


def test_block_size_at_the_servers_minimum_is_taken() -> None:
    assert plan(THING, export(sizes=(4096, 4096, 65536)), block_size=4096).block_size == 4096


# -- largest request ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maximum", "kb"),
    [
        (4096, 4),
        (4097, 4),
        (8191, 4),
        (8192, 8),
        (65536, 64),
        (65537, 64),
        (1000000, 976),
        ((1 << 20) - 1, 1020),
        (1 << 20, 1024),
        (1 << 25, 1024),
        ((1 << 32) - 1, 1024),
    ],
)
def test_largest_request_is_whole_pages_within_the_servers_maximum(maximum: int, kb: int) -> None:
    assert plan(THING, export(sizes=(1, 4096, maximum))).max_sectors_kb == kb


@pytest.mark.parametrize(("minimum", "maximum"), [(1, 1), (1, 512), (512, 512), (512, 4095), (2048, 2048)])
def test_maximum_below_a_page_is_refused(minimum: int, maximum: int) -> None:
    error = refused(export(sizes=(minimum, minimum, maximum)))
    assert type(error) is KernelRefused
    cause = f"the server accepts only {maximum} bytes per request, the kernel sends at least 4096"
    assert str(error) == f"{THING}: {cause}"
    assert error.hint == "use a server with a larger maximum"
    assert error.exit_code == 6


def test_server_of_4096_to_65536_is_served_within_its_limits() -> None:
    """The server that gives EIO to clients at their default of 512, and to reads of 1 MiB."""
    assert plan(THING, export(sizes=(4096, 65536, 65536))) == Geometry(256, 4096, 0, 64, FLAGS)


STICKY = 1 << 4 | 1 << 6  # rotational, send_write_zeroes: the driver of 6.12 cannot switch them off again


# -- flags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "read_only", "told"),
    [
        (FLAGS, False, FLAGS),
        (FLAGS, True, FLAGS | READ_ONLY),
        (FLAGS | READ_ONLY, False, FLAGS | READ_ONLY),
        (FLAGS | READ_ONLY, True, FLAGS | READ_ONLY),
        (0xFFFF, False, 0xFFFF & ~STICKY),
        (0, False, 0),
    ],
)
def test_flags_are_the_servers_and_read_only_may_be_added(flags: int, read_only: bool, told: int) -> None:
    found = plan(THING, export(flags=flags), read_only=read_only)
    assert found.flags == told
    assert found.read_only == bool(told & READ_ONLY)


# -- by chance ---------------------------------------------------------------------------------------------------------

powers = st.integers(0, 16).map(lambda power: 1 << power)
block_sizes = st.tuples(powers, st.integers(0, (1 << 32) - 1), st.integers(1, (1 << 32) - 1))


@given(st.integers(0, (1 << 64) - 1), st.none() | block_sizes, st.none() | st.integers(-1, 1 << 17) | powers)
def test_limits_of_the_server_and_the_kernel_hold(
    size: int, sizes: tuple[int, int, int] | None, wanted: int | None
) -> None:
    assume(sizes is None or sizes[0] <= sizes[2])
    try:
        found = plan(THING, export(size, sizes), block_size=wanted)
    except NbdattachError as error:
        assert type(error) in (Malformed, Refused, KernelRefused)
        assert str(error).isprintable()
        return
    minimum, _, maximum = sizes or (1, 0, 1 << 40)
    assert found.size + found.tail == size <= MAX_SIZE
    assert found.blocks > 0
    assert 0 <= found.tail < found.block_size
    assert found.block_size in (512, 1024, 2048, 4096)
    assert found.block_size >= minimum
    assert found.block_size == (wanted or found.block_size)
    assert PAGE <= found.max_sectors_kb * 1024 <= min(maximum, MAX_REQUEST_KB * 1024)
    assert found.max_sectors_kb * 1024 % PAGE == 0
