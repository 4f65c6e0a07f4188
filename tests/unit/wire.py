# SPDX-License-Identifier: GPL-2.0-or-later
"""The bytes that a server sends, and those that a client must send.

The numbers are the specification's, written out again: a slip of the pen in `nbdattach.protocol.constants` must show.
"""

from __future__ import annotations

import struct

NBDMAGIC = b"NBDMAGIC"
IHAVEOPT = b"IHAVEOPT"
OLD_MAGIC = bytes.fromhex("0000420281861253")
REPLY_MAGIC = bytes.fromhex("0003e889045565a9")

FIXED, NO_ZEROES = 1, 2
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO = 1, 2, 3, 5, 6, 7
ACK, SERVER, INFORMATION = 1, 2, 3
UNSUP, POLICY, INVALID, PLATFORM, TLS_REQD, UNKNOWN, SHUTDOWN, BLOCK_SIZE_REQD, TOO_BIG = range(0x80000001, 0x8000000A)

ZEROES = bytes(124)
SIZE, FLAGS = 1 << 20, 0x0003


def greeting(flags: int = FIXED | NO_ZEROES) -> bytes:
    return NBDMAGIC + IHAVEOPT + struct.pack(">H", flags)


def oldstyle(size: int = SIZE, flags: int = FLAGS) -> bytes:
    return NBDMAGIC + OLD_MAGIC + struct.pack(">QI", size, flags) + ZEROES


def header(option: int, kind: int, length: int) -> bytes:
    return REPLY_MAGIC + struct.pack(">III", option, kind, length)


def reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return header(option, kind, len(data)) + data


def ack(option: int) -> bytes:
    return reply(option, ACK)


def info(option: int, kind: int, data: bytes) -> bytes:
    return reply(option, INFORMATION, struct.pack(">H", kind) + data)


def sized(option: int, size: int = SIZE, flags: int = FLAGS) -> bytes:
    return info(option, 0, struct.pack(">QH", size, flags))


def blocks(option: int, minimum: int, preferred: int, maximum: int) -> bytes:
    return info(option, 3, struct.pack(">III", minimum, preferred, maximum))


def listed(name: bytes, description: bytes = b"") -> bytes:
    return reply(LIST, SERVER, struct.pack(">I", len(name)) + name + description)


def exported(size: int = SIZE, flags: int = FLAGS, zeroes: bytes = b"") -> bytes:
    """The answer to NBD_OPT_EXPORT_NAME."""
    return struct.pack(">QH", size, flags) + zeroes


# -- the client's half -------------------------------------------------------------------------------------------


def client_flags(flags: int = FIXED | NO_ZEROES) -> bytes:
    return struct.pack(">I", flags)


def option(number: int, data: bytes = b"") -> bytes:
    return IHAVEOPT + struct.pack(">II", number, len(data)) + data


def asks(number: int, name: bytes = b"") -> bytes:
    """NBD_OPT_GO or NBD_OPT_INFO, asking for name, description and block size."""
    return option(number, struct.pack(">I", len(name)) + name + struct.pack(">HHHH", 3, 1, 2, 3))


def request(kind: int, cookie: int = 0, offset: int = 0, length: int = 0) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, 0, kind, cookie, offset, length)


def simple_reply(error: int, cookie: int) -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie)


DISC = request(2)
