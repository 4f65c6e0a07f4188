# SPDX-License-Identifier: GPL-2.0-or-later
"""Option haggling: sending an option and reading its replies, one at a time. No I/O (see `steps`).

Source: NBD specification, "Fixed newstyle negotiation" and "Option reply types". `handshake` builds on this.
"""

from __future__ import annotations

import struct
from collections.abc import Container
from dataclasses import replace

from nbdattach.errors import BrokenProtocol, NbdattachError, NoConnection, Refused, TlsFailed
from nbdattach.immutable import immutable
from nbdattach.protocol.constants import (
    IHAVEOPT,
    MAX_STRING,
    NBD_OPT_ABORT,
    NBD_OPT_GO,
    NBD_OPT_INFO,
    NBD_OPT_LIST,
    NBD_REP_ACK,
    NBD_REP_ERR_BLOCK_SIZE_REQD,
    NBD_REP_ERR_INVALID,
    NBD_REP_ERR_PLATFORM,
    NBD_REP_ERR_POLICY,
    NBD_REP_ERR_SHUTDOWN,
    NBD_REP_ERR_TLS_REQD,
    NBD_REP_ERR_TOO_BIG,
    NBD_REP_ERR_UNKNOWN,
    NBD_REP_ERR_UNSUP,
    NBD_REP_FLAG_ERROR,
    OPTION_NAMES,
    REPLY_MAGIC,
    REPLY_NAMES,
)
from nbdattach.protocol.steps import Note, Receive, Send, Steps, T
from nbdattach.protocol.target import Target
from nbdattach.text import from_wire, quoted, typed

_OPTION = struct.Struct(">QII")  # magic, option, length
_REPLY = struct.Struct(">QIII")  # magic, option, reply type, length


@immutable
class Reply:
    """The header of one option reply. Its `length` bytes of data are still to be read."""

    option: int
    type: int
    length: int

    @property
    def is_error(self) -> bool:
        return bool(self.type & NBD_REP_FLAG_ERROR)


def send_option(option: int, data: bytes = b"") -> Steps[None]:
    yield Note(f"{OPTION_NAMES[option]}, {len(data)} bytes of data")
    yield Send(_OPTION.pack(IHAVEOPT, option, len(data)) + data)


def next_reply(target: Target, option: int) -> Steps[Reply]:
    """The next reply's header. An error reply is read whole and raised as `Refused`."""
    magic, answered, kind, length = _REPLY.unpack((yield Receive(_REPLY.size)))
    if magic != REPLY_MAGIC:
        raise BrokenProtocol(target.uri, f"an option reply began with the magic {magic:#x}")
    if answered != option:
        raise BrokenProtocol(target.uri, f"a reply to option {answered}, but we had sent {OPTION_NAMES[option]}")
    reply = Reply(answered, kind, length)
    yield Note(f"{_reply_name(kind)}, {length} bytes of data")
    if reply.is_error:
        if length > MAX_STRING:
            raise BrokenProtocol(target.uri, f"{_reply_name(kind)} with {length} bytes of text")
        words = from_wire((yield Receive(length))) if length else ""
        raise _refusal(target, option, kind, words)
    if kind == NBD_REP_ACK and length:
        raise BrokenProtocol(target.uri, f"NBD_REP_ACK with {length} bytes of data")
    return reply


class OptionRefused(Refused):
    """`reply` is the NBD_REP_ERR_* type, `words` are the server's own."""

    reply: int = 0
    words: str = ""

    def __init__(self, thing: str, cause: str, hint: str, reply: int, words: str) -> None:
        super().__init__(thing, cause, hint)
        self.reply = reply
        self.words = words


# nbd-server sends the same text for all of these. It counts clients that come, and not those that leave (3.24 to 3.27).
DENIED = (
    "see its log; nbd-server does this if maxconnections clients have come since its start, if authfile or prerun"
    " denies this client, or if it cannot open its file"
)
# nbd-server lists its exports only if told to.
UNLISTED = "nbd-server lists its exports with allowlist = true; nbdattach info -N NAME {server} shows one of them"

_REFUSALS = {
    NBD_REP_ERR_UNSUP: ("the server does not know {option}", "a newer server may know it"),
    NBD_REP_ERR_POLICY: ("the server's policy forbids {option}", "its configuration must allow this client or option"),
    NBD_REP_ERR_INVALID: ("the server calls our {option} invalid", "--debug shows each step"),
    NBD_REP_ERR_PLATFORM: ("{option} does not work on the server's platform", "see the server's log"),
    NBD_REP_ERR_TLS_REQD: ("the server requires TLS", "TLS is in use already; see the server's log"),
    NBD_REP_ERR_UNKNOWN: ("the server has no such export", "see nbdattach list {server}"),
    NBD_REP_ERR_SHUTDOWN: ("the server is shutting down", "try again when it is back"),
    NBD_REP_ERR_BLOCK_SIZE_REQD: (
        "the server requires clients to respect its block sizes, but announces none",
        "see the server's log",
    ),
    NBD_REP_ERR_TOO_BIG: ("the server calls our {option} too big", "is the export's name too long for it?"),
}
# What policy may forbid, told by its purpose.
_BY_POLICY = {
    NBD_OPT_GO: ("the server's policy refuses this export to this client", DENIED),
    NBD_OPT_INFO: ("the server's policy refuses this export to this client", DENIED),
    NBD_OPT_LIST: ("the server's policy forbids listing its exports", UNLISTED),
}


def advice_of_tls(target: Target) -> str:
    """The hint for a server that wants TLS, which the user has not asked for."""
    return f"use --tls, or {typed(replace(target, tls=True).uri)}"


def _refusal(target: Target, option: int, kind: int, words: str) -> NbdattachError:
    cause, hint = _REFUSALS.get(
        kind, (f"the server refused {{option}} with the unknown error {kind:#x}", "see the server's log")
    )
    if kind == NBD_REP_ERR_POLICY:
        cause, hint = _BY_POLICY.get(option, (cause, hint))
    cause = cause.format(option=OPTION_NAMES[option]) + (f"; it says: {quoted(words)}" if words else "")
    if kind == NBD_REP_ERR_TLS_REQD:
        return TlsFailed(target.uri, cause, hint if target.tls else advice_of_tls(target))
    return OptionRefused(target.uri, cause, hint.format(server=typed(target.server)), kind, words)


def _reply_name(kind: int) -> str:
    return REPLY_NAMES.get(kind, f"reply type {kind:#x}")


def unexpected(target: Target, reply: Reply) -> BrokenProtocol:
    return BrokenProtocol(target.uri, f"{_reply_name(reply.type)} in answer to {OPTION_NAMES[reply.option]}")


def plain_option(target: Target, option: int) -> Steps[None]:
    """An option without data that is answered by one NBD_REP_ACK."""
    yield from send_option(option)
    reply = yield from next_reply(target, option)
    if reply.type != NBD_REP_ACK:
        raise unexpected(target, reply)


def politely(steps: Steps[T], but_for: Container[int] = ()) -> Steps[T]:
    """Runs `steps`; if the server refuses, sends NBD_OPT_ABORT, except for the refusals in `but_for`."""
    try:
        return (yield from steps)
    except (Refused, TlsFailed) as refused:
        if not (isinstance(refused, OptionRefused) and refused.reply in but_for):
            yield from abort()
        raise


def abort() -> Steps[None]:
    """Sends NBD_OPT_ABORT, a soft disconnect; waits for no reply, and does not fail if the server is gone already."""
    try:
        yield from send_option(NBD_OPT_ABORT)
    except (NoConnection, TlsFailed):
        return
