# SPDX-License-Identifier: GPL-2.0-or-later
"""The transmission phase in userspace: as much of it as `check` needs. No I/O (see `steps`).

Source: NBD specification, "Transmission phase", with simple replies only: we never ask for structured ones.
"""

from __future__ import annotations

import struct

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


def read(thing: str, offset: int, length: int, cookie: int) -> Steps[bytes]:
    """`length` bytes at `offset`. Raises `Refused` with the server's error, `BrokenProtocol`."""
    yield Note(f"NBD_CMD_READ of {length} bytes at {offset}")
    yield Send(REQUEST.pack(NBD_REQUEST_MAGIC, 0, NBD_CMD_READ, cookie, offset, length))
    magic, error, answered = _SIMPLE_REPLY.unpack((yield Receive(_SIMPLE_REPLY.size)))
    if magic != NBD_SIMPLE_REPLY_MAGIC:
        raise BrokenProtocol(thing, f"the server answered a read with the magic {magic:#x}")
    if answered != cookie:
        raise BrokenProtocol(thing, f"the server answered request {answered:#x}, but we had sent {cookie:#x}")
    if error:
        number, words = error_words(error)
        raise Refused(
            thing,
            f"reading {length} bytes at {offset} failed: {words} ({number})",
            "see the server's log",
        )
    return (yield Receive(length))


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
