# SPDX-License-Identifier: GPL-2.0-or-later
"""The buffer of one direction gives its bytes in their order, and all of its room back once it is empty."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nbdattach.relay.buffer import BUFFER, Buffer


@given(
    steps=st.lists(st.tuples(st.integers(1, BUFFER), st.integers(0, BUFFER)), max_size=20), seed=st.binary(min_size=1)
)
def test_bytes_come_out_as_they_went_in(steps: list[tuple[int, int]], seed: bytes) -> None:
    buffer, into, out = Buffer(), bytearray(), bytearray()
    for more, less in steps:
        count = min(more, len(buffer.room))
        buffer.room[:count] = (seed * count)[:count]
        buffer.grow(count)
        into += (seed * count)[:count]
        taken = bytes(buffer.waiting[:less])
        buffer.shrink(len(taken))
        out += taken
        assert bool(buffer) == (len(out) < len(into))
        assert buffer.full == (len(buffer.room) == 0)
        assert buffer or len(buffer.room) == BUFFER
    assert out + buffer.waiting == into
