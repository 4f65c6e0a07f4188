# SPDX-License-Identifier: GPL-2.0-or-later
"""The transmission phase in userspace: as much of it as we need to read a little. No I/O (see `steps`).

Source: NBD specification, "Transmission phase", with simple replies only: we never ask for structured ones.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from nbdattach.errors import BrokenProtocol, NoConnection, Refused
from nbdattach.protocol.constants import (
    NBD_CMD_DISC,
    NBD_CMD_READ,
    NBD_EINVAL,
    NBD_ERRORS,
    NBD_REQUEST_MAGIC,
    NBD_SIMPLE_REPLY_MAGIC,
)
from nbdattach.protocol.steps import Note, Receive, Send, Steps

REQUEST = struct.Struct(">IHHQQI")  # magic, command flags, type, cookie, offset, length: 28 bytes
_SIMPLE_REPLY = struct.Struct(">IIQ")  # magic, error, cookie: 16 bytes


def read_all(thing: str, ranges: Sequence[tuple[int, int]], most: int, cookie: int) -> Steps[list[bytes]]:
    """The bytes of each range (offset, length), requested all at once: it takes one round trip.

    `most` bytes a request. Raises as `read`, when the answers to all requests have been read.
    """
    parts = [
        (number, place, min(most, offset + length - place))
        for number, (offset, length) in enumerate(ranges)
        for place in range(offset, offset + length, most)
    ]
    yield Note(f"NBD_CMD_READ of {len(parts)} parts, {sum(length for *_, length in parts)} bytes")
    requests = (
        REQUEST.pack(NBD_REQUEST_MAGIC, 0, NBD_CMD_READ, cookie + at, place, length)
        for at, (_, place, length) in enumerate(parts)
    )
    yield Send(b"".join(requests))
    waiting, answers, failure = dict(enumerate(parts)), {}, None
    while waiting:
        error, answered = yield from _reply(thing)
        part = waiting.pop(answered - cookie, None)
        if part is None:
            raise BrokenProtocol(thing, f"the server answered request {answered:#x}, which we had not sent")
        if error:
            failure = failure or _failed(thing, part[1], part[2], error)
        else:
            answers[part] = yield Receive(part[2])
    if failure:
        raise failure
    found: list[bytes] = [b""] * len(ranges)
    for part in parts:
        found[part[0]] += answers[part]
    return found


def read(thing: str, offset: int, length: int, cookie: int) -> Steps[bytes]:
    """`length` bytes at `offset`. Raises `Refused` with the server's error, `BrokenProtocol`."""
    yield Note(f"NBD_CMD_READ of {length} bytes at {offset}")
    yield Send(REQUEST.pack(NBD_REQUEST_MAGIC, 0, NBD_CMD_READ, cookie, offset, length))
    error, answered = yield from _reply(thing)
    if answered != cookie:
        raise BrokenProtocol(thing, f"the server answered request {answered:#x}, but we had sent {cookie:#x}")
    if error:
        raise _failed(thing, offset, length, error)
    return (yield Receive(length))


def _reply(thing: str) -> Steps[tuple[int, int]]:
    """Error and cookie of the next answer."""
    magic, error, answered = _SIMPLE_REPLY.unpack((yield Receive(_SIMPLE_REPLY.size)))
    if magic != NBD_SIMPLE_REPLY_MAGIC:
        raise BrokenProtocol(thing, f"the server answered a read with the magic {magic:#x}")
    return error, answered


def _failed(thing: str, offset: int, length: int, error: int) -> Refused:
    number, words = error_words(error)
    return Refused(thing, f"reading {length} bytes at {offset} failed: {words} ({number})", "see the server's log")


def disconnect() -> Steps[None]:
    """Sends NBD_CMD_DISC, which has no reply; does not fail if the server is gone already."""
    yield Note("NBD_CMD_DISC")
    try:
        yield Send(REQUEST.pack(NBD_REQUEST_MAGIC, 0, NBD_CMD_DISC, 0, 0, 0))
    except NoConnection:
        return


def ends_with_disconnect(sent: bytes) -> bool:
    """Whether the last request is NBD_CMD_DISC: the kernel sends nothing after it, and no data with it."""
    if len(sent) < REQUEST.size:
        return False
    magic, _, command, *_ = REQUEST.unpack(sent[-REQUEST.size :])
    return bool(magic == NBD_REQUEST_MAGIC and command == NBD_CMD_DISC)


def error_words(error: int) -> tuple[int, str]:
    """Number and words of an error value; one that is not in the specification counts as NBD_EINVAL."""
    known = error if error in NBD_ERRORS else NBD_EINVAL
    return known, NBD_ERRORS[known]
