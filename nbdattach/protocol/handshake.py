# SPDX-License-Identifier: GPL-2.0-or-later
"""The handshake phase, client side, as generators that do no I/O (see `steps`).

Source: NBD specification, "Handshake", "Option types", "Option reply types", in that order.
No length from the peer is trusted: each is checked against a named limit before it is read,
and the number of replies is bounded. The caller that drives the generator keeps the deadline.
"""

from __future__ import annotations

import struct

from nbdattach.errors import (
    BrokenProtocol,
    ConnectionLost,
    NbdattachError,
    Refused,
    TlsFailed,
    UnknownExport,
)
from nbdattach.immutable import immutable
from nbdattach.protocol import tls_notice, transmission
from nbdattach.protocol.constants import (
    IHAVEOPT,
    MAX_STRING,
    NBD_FLAG_C_FIXED_NEWSTYLE,
    NBD_FLAG_C_NO_ZEROES,
    NBD_FLAG_FIXED_NEWSTYLE,
    NBD_FLAG_NO_ZEROES,
    NBD_INFO_BLOCK_SIZE,
    NBD_INFO_DESCRIPTION,
    NBD_INFO_EXPORT,
    NBD_INFO_NAME,
    NBD_OPT_EXPORT_NAME,
    NBD_OPT_GO,
    NBD_OPT_INFO,
    NBD_OPT_LIST,
    NBD_OPT_STARTTLS,
    NBD_REP_ACK,
    NBD_REP_ERR_UNKNOWN,
    NBD_REP_ERR_UNSUP,
    NBD_REP_INFO,
    NBD_REP_SERVER,
    NBDMAGIC,
    OLDSTYLE_MAGIC,
    OPTION_NAMES,
)
from nbdattach.protocol.export import BlockSize, Export, Listed
from nbdattach.protocol.options import (
    DENIED,
    OptionRefused,
    Reply,
    abort,
    next_reply,
    plain_option,
    politely,
    send_option,
    unexpected,
)
from nbdattach.protocol.steps import Note, Receive, Send, StartTls, Steps
from nbdattach.protocol.target import Target
from nbdattach.text import from_wire, quoted, to_wire, typed

# Padding after NBD_OPT_EXPORT_NAME without NO_ZEROES, and the reserved bytes of the old style.
RESERVED = 124
# An NBD_REP_SERVER is a length, a name and a description: both strings at their limit.
MAX_SERVER_REPLY = 4 + 2 * MAX_STRING
# Information types we do not know are skipped; known ones end at 2 + MAX_STRING, newer ones get room.
MAX_INFO_REPLY = 65536
# There are four information types today; a server that sends more replies than this is broken or hostile.
MAX_INFO_REPLIES = 64
# More exports than any known server has; bounds the time that a hostile list takes.
MAX_EXPORTS = 10_000
# Bounds the memory a hostile list takes: the names and descriptions together, in bytes.
MAX_LIST_BYTES = 8 << 20
# A power of two and "MUST NOT be larger than 2^16" (Size constraints).
MAX_MINIMUM_BLOCK = 65536

# Hints for a server that does not open an export; an old one closes the connection instead of giving a reason.
OF_NBDKIT = "see its log: nbdkit answers this if it cannot open the disk of the export"
NO_REASON = "an old server gives no reason: a wrong name, an export in use, or a client that it denies; see its log"
NAMED = "or the export has a name that it does not list: -N NAME"

_EXPORT_INFO = struct.Struct(">QH")  # size, transmission flags
_BLOCK_SIZE_INFO = struct.Struct(">III")  # minimum, preferred, maximum payload
# Refusals of NBD_OPT_GO and NBD_OPT_INFO after which we try other options.
_ASKED_OTHERWISE = (NBD_REP_ERR_UNSUP, NBD_REP_ERR_UNKNOWN)
_ASKED = (NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE)


@immutable
class _Server:
    """The server's greeting. In the old style, the greeting includes the export."""

    fixed: bool = False
    no_zeroes: bool = False
    oldstyle: Export | None = None

    @property
    def protocol(self) -> str:
        return "newstyle-fixed" if self.fixed else "newstyle"


def enter(target: Target) -> Steps[Export]:
    """Enters the transmission phase of the target's export: after the last step the socket carries requests.

    A notice in place of the export is refused (`tls_notice`).

    Raises `Refused`, `UnknownExport`, `BrokenProtocol`, `TlsFailed`, `ConnectionLost`.
    """
    return (yield from _entered(target, (yield from _open(target))))


def inspect(target: Target) -> Steps[Export]:
    """The target's export as the server describes it; leaves the server politely. Raises as `enter`.

    NBD_OPT_INFO costs a server nothing. To enter ends a qemu-nbd without --persistent, and takes one of nbd-server's
    maxconnections. So we enter only if the server does not know the option, or answers with a size of 0, as nbd-server
    does: it announces the size only to a client that enters. And if the export must be read (`tls_notice`).
    """
    server = yield from _open(target)
    if server.fixed:
        export = yield from _asked(target, NBD_OPT_INFO)
        if export and export.size and not tls_notice.may_be_one(target, export):
            yield from abort()
            return export
    export = yield from _entered(target, server)
    yield from transmission.disconnect()
    return export


def catalogue(target: Target) -> Steps[list[Listed]]:
    """All exports of the server, with sizes if it reports them; leaves the server politely. Raises as `enter`."""
    server = yield from _open(target)
    if server.oldstyle:
        yield from transmission.disconnect()
        raise Refused(
            target.uri,
            "an old style server has one export and cannot list it",
            f"see nbdattach info {typed(target.server)}",
        )
    if not server.fixed:
        raise Refused(
            target.uri,
            "a server without fixed newstyle cannot list its exports",
            f"see nbdattach info {typed(target.server)}",
        )
    found = yield from politely(_list_with_sizes(target))
    yield from abort()
    return found


# -- the first bytes ---------------------------------------------------------------------------------------------


def _open(target: Target) -> Steps[_Server]:
    yield Note("waiting for the server's greeting")
    magic = int.from_bytes((yield Receive(8)), "big")
    if magic != NBDMAGIC:
        raise BrokenProtocol(target.uri, f"not an NBD server: it began with {_bytes_shown(magic)}, not NBDMAGIC")
    style = int.from_bytes((yield Receive(8)), "big")
    if style == OLDSTYLE_MAGIC:
        return (yield from _oldstyle(target))
    if style != IHAVEOPT:
        raise BrokenProtocol(target.uri, f"neither a new nor an old style NBD server: {_bytes_shown(style)}")
    flags = int.from_bytes((yield Receive(2)), "big")
    yield Note(f"new style, handshake flags {flags:#x}")
    server = _Server(bool(flags & NBD_FLAG_FIXED_NEWSTYLE), bool(flags & NBD_FLAG_NO_ZEROES))
    ours = NBD_FLAG_C_FIXED_NEWSTYLE * server.fixed | NBD_FLAG_C_NO_ZEROES * server.no_zeroes
    yield Send(ours.to_bytes(4, "big"))
    if target.tls:
        yield from _starttls(target, server)
    return server


def _bytes_shown(magic: int) -> str:
    return quoted(magic.to_bytes(8, "big").decode("latin-1"))


def _oldstyle(target: Target) -> Steps[_Server]:
    yield Note("old style")
    size, flags = struct.unpack(">QI", (yield Receive(12)))
    if flags >> 16:
        raise BrokenProtocol(target.uri, f"an old style server with unknown flags {flags:#x}")
    yield Receive(RESERVED)
    if target.tls:
        raise TlsFailed(target.uri, "an old style server cannot do TLS", "use nbd:// to connect without encryption")
    if target.export:
        yield from transmission.disconnect()
        raise Refused(
            target.uri, "an old style server has one export, without a name", f"leave the name out: {target.server}"
        )
    return _Server(oldstyle=Export("", size, flags, "oldstyle"))


def _starttls(target: Target, server: _Server) -> Steps[None]:
    """NBD_OPT_STARTTLS, before any other option: only the greeting comes before TLS."""
    if not server.fixed:
        raise TlsFailed(
            target.uri, "a server without fixed newstyle cannot do TLS", "use nbd:// to connect without encryption"
        )
    try:
        yield from plain_option(target, NBD_OPT_STARTTLS)
    except Refused as refused:
        yield from abort()
        raise TlsFailed(
            target.uri,
            f"the server refuses TLS: {refused.cause}",
            "enable TLS on the server; no data was sent unencrypted",
        ) from refused
    yield Note("TLS handshake")
    yield StartTls(target.verified_name)


# -- choosing an export ------------------------------------------------------------------------------------------


def _entered(target: Target, server: _Server) -> Steps[Export]:
    """`enter`, after the greeting."""
    export = yield from _chosen(target, server)
    yield from tls_notice.refuse(target, export)
    return export


def _chosen(target: Target, server: _Server) -> Steps[Export]:
    """Enters the export by the best way that the server knows."""
    if server.oldstyle:
        return server.oldstyle
    if not server.fixed:
        return (yield from _export_name(target, server))
    export = yield from _asked(target, NBD_OPT_GO)
    if export:
        return export
    offered = yield from politely(_require_listed(target))
    return (yield from _export_name(target, server, offered))


def _asked(target: Target, option: int) -> Steps[Export | None]:
    """The answer to NBD_OPT_GO or NBD_OPT_INFO, None if the server does not know the option. Leaves if it refuses."""
    try:
        return (yield from politely(_ask(target, option, target.export), _ASKED_OTHERWISE))
    except OptionRefused as refused:
        if refused.reply == NBD_REP_ERR_UNKNOWN:
            raise (yield from _unknown(target, refused)) from refused
        if refused.reply != NBD_REP_ERR_UNSUP:
            raise
    return None


def _unknown(target: Target, refused: OptionRefused) -> Steps[Refused]:
    """The error, with the names of the server's exports. If they cannot be listed, the error goes without them."""
    try:
        offered = yield from _offered(target)
    except NbdattachError:
        offered = None
    yield from abort()
    if offered and target.export in offered:
        return _listed_but_closed(target, offered, OF_NBDKIT, refused.words)
    return UnknownExport(target.uri, target.export, offered, target.server, refused.words)


def _listed_but_closed(target: Target, offered: list[str], hint: str, words: str = "") -> Refused:
    """The error for an export that is one of `offered`. A default export may be listed and be none."""
    what = "the export" if target.export else "a default export"
    said = f"; it says: {quoted(words)}" if words else ""
    if not target.export:
        hint += f"; {UnknownExport.names_shown(offered) or NAMED}"
    return Refused(target.uri, f"the server lists {what}, but refuses to open it{said}", hint)


def _require_listed(target: Target) -> Steps[list[str] | None]:
    """Looks in the list first: after NBD_OPT_EXPORT_NAME, an unknown name looks like a lost connection.

    The names of the server's exports, None if it refuses to list them. Raises `UnknownExport`.

    The default export need not be in the list ("reserved for a default export"); a named one must.
    """
    offered = yield from _offered(target)
    if target.export and offered is not None and target.export not in offered:
        raise UnknownExport(target.uri, target.export, offered, target.server)
    return offered


def _offered(target: Target) -> Steps[list[str] | None]:
    """Names of the server's exports, None if it refuses to list them: this is only for a better message."""
    try:
        return [one.name for one in (yield from _list(target))]
    except Refused:
        return None


def _export_name(target: Target, server: _Server, offered: list[str] | None = None) -> Steps[Export]:
    """NBD_OPT_EXPORT_NAME: the server answers with the export, or closes the connection and gives no reason.

    `offered` are the names of its exports, None if they are not known.
    """
    yield from send_option(NBD_OPT_EXPORT_NAME, to_wire(target.export))
    try:
        size, flags = _EXPORT_INFO.unpack((yield Receive(_EXPORT_INFO.size)))
    except ConnectionLost as lost:
        if offered is None:
            what = f"the export {quoted(target.export)}" if target.export else "its default export"
            raise Refused(target.uri, f"the server closed the connection when asked for {what}", NO_REASON) from lost
        if target.export in offered:
            raise _listed_but_closed(target, offered, DENIED) from lost
        raise UnknownExport(target.uri, target.export, offered, target.server) from lost
    if not server.no_zeroes:
        yield Receive(RESERVED)
    return Export(target.export, size, flags, server.protocol)


def _ask(target: Target, option: int, name: str) -> Steps[Export]:
    """NBD_OPT_GO or NBD_OPT_INFO with all of the information that we understand."""
    wire_name = to_wire(name)
    data = len(wire_name).to_bytes(4, "big") + wire_name
    data += struct.pack(f">H{len(_ASKED)}H", len(_ASKED), *_ASKED)
    yield from send_option(option, data)
    found = _Found(target)
    for _ in range(MAX_INFO_REPLIES):
        reply = yield from next_reply(target, option)
        if reply.type == NBD_REP_ACK:
            return found.export(name)
        if reply.type != NBD_REP_INFO:
            raise unexpected(target, reply)
        yield from _info(target, reply, found)
    raise BrokenProtocol(target.uri, f"more than {MAX_INFO_REPLIES} replies to {OPTION_NAMES[option]}")


class _Found:
    """Collects the information replies, which come in any order."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.size_and_flags: tuple[int, int] | None = None
        self.name: str | None = None
        self.description = ""
        self.block_size: BlockSize | None = None

    def export(self, name: str) -> Export:
        if self.size_and_flags is None:
            raise BrokenProtocol(
                self._target.uri, "the server accepted the option without announcing the export's size"
            )
        size, flags = self.size_and_flags
        named = name if self.name is None else self.name
        return Export(named, size, flags, "newstyle-fixed", self.description, self.block_size)


def _info(target: Target, reply: Reply, found: _Found) -> Steps[None]:
    """The data of one NBD_REP_INFO."""
    if not 2 <= reply.length <= MAX_INFO_REPLY:
        raise BrokenProtocol(target.uri, f"an NBD_REP_INFO of {reply.length} bytes")
    kind = int.from_bytes((yield Receive(2)), "big")
    length = reply.length - 2
    wanted = {NBD_INFO_EXPORT: _EXPORT_INFO.size, NBD_INFO_BLOCK_SIZE: _BLOCK_SIZE_INFO.size}.get(kind, length)
    if length != wanted or (kind in (NBD_INFO_NAME, NBD_INFO_DESCRIPTION) and length > MAX_STRING):
        raise BrokenProtocol(target.uri, f"an information reply of type {kind} with {length} bytes of data")
    data = yield Receive(length)
    if kind == NBD_INFO_EXPORT:
        size_and_flags = _EXPORT_INFO.unpack(data)
        if found.size_and_flags not in (None, size_and_flags):
            raise BrokenProtocol(target.uri, "the server announced two different sizes or flags for one export")
        found.size_and_flags = size_and_flags
    elif kind == NBD_INFO_NAME:
        found.name = from_wire(data)
    elif kind == NBD_INFO_DESCRIPTION:
        found.description = from_wire(data)
    elif kind == NBD_INFO_BLOCK_SIZE:
        found.block_size = _checked_block_size(target, BlockSize(*_BLOCK_SIZE_INFO.unpack(data)))
    yield Note(f"information of type {kind}, {length} bytes")


def _checked_block_size(target: Target, sizes: BlockSize) -> BlockSize:
    """`preferred` is advice to us and may be odd; a wrong minimum or maximum would break every request."""
    power_of_two = sizes.minimum & (sizes.minimum - 1) == 0
    if not sizes.minimum or not power_of_two or sizes.minimum > MAX_MINIMUM_BLOCK or sizes.maximum < sizes.minimum:
        raise BrokenProtocol(
            target.uri,
            f"impossible block sizes: minimum {sizes.minimum}, preferred {sizes.preferred}, maximum {sizes.maximum}",
        )
    return sizes


# -- listing -----------------------------------------------------------------------------------------------------


def _list_with_sizes(target: Target) -> Steps[list[Listed]]:
    listed = yield from _list(target)
    sized: list[Listed] = []
    room = MAX_LIST_BYTES
    for one in listed:
        try:
            export = yield from _ask(target, NBD_OPT_INFO, one.name)
        except (Refused, TlsFailed) as refused:
            if isinstance(refused, OptionRefused) and refused.reply == NBD_REP_ERR_UNSUP:
                return listed
            sized.append(one)
            continue
        room -= len(export.description)
        if room < 0:
            raise _list_too_long(target)
        # nbd-server answers NBD_OPT_INFO with size 0 for every export: that means unknown.
        sized.append(Listed(one.name, one.description or export.description, export.size or None))
    return sized


def _list_too_long(target: Target) -> BrokenProtocol:
    return BrokenProtocol(
        target.uri, f"a list of more than {MAX_EXPORTS} exports or {MAX_LIST_BYTES >> 20} MiB of names"
    )


def _list(target: Target) -> Steps[list[Listed]]:
    """NBD_OPT_LIST."""
    yield from send_option(NBD_OPT_LIST)
    listed: list[Listed] = []
    room = MAX_LIST_BYTES
    while True:
        reply = yield from next_reply(target, NBD_OPT_LIST)
        if reply.type == NBD_REP_ACK:
            return listed
        if reply.type != NBD_REP_SERVER:
            raise unexpected(target, reply)
        room -= reply.length
        if len(listed) == MAX_EXPORTS or room < 0:
            raise _list_too_long(target)
        listed.append((yield from _listed(target, reply)))


def _listed(target: Target, reply: Reply) -> Steps[Listed]:
    """The data of one NBD_REP_SERVER: length of the name, name, description."""
    if not 4 <= reply.length <= MAX_SERVER_REPLY:
        raise BrokenProtocol(target.uri, f"an NBD_REP_SERVER of {reply.length} bytes")
    length = int.from_bytes((yield Receive(4)), "big")
    rest = reply.length - 4 - length
    if rest < 0 or length > MAX_STRING or rest > MAX_STRING:
        raise BrokenProtocol(target.uri, f"a name of {length} bytes in an NBD_REP_SERVER of {reply.length}")
    name = from_wire((yield Receive(length))) if length else ""
    description = from_wire((yield Receive(rest))) if rest else ""
    return Listed(name, description, None)
