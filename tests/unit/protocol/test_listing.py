# SPDX-License-Identifier: GPL-2.0-or-later
"""The exports of a server: NBD_OPT_LIST, and a size for each name. No sockets."""

from __future__ import annotations

import struct

import pytest
import wire
from script import fails, succeeds

from nbdattach.errors import BrokenProtocol, NoConnection, Refused, TlsFailed
from nbdattach.protocol import handshake
from nbdattach.protocol.export import Listed
from nbdattach.protocol.target import Target

SERVER = Target(host="db1")
HELLO = wire.greeting()
ACK = wire.ack(wire.LIST)
NO_INFO = wire.reply(wire.INFO, wire.UNSUP)
KNOWN = wire.sized(wire.INFO) + wire.ack(wire.INFO)


@pytest.mark.row(7)
def test_list_has_names_descriptions_and_sizes() -> None:
    said = HELLO, wire.listed(b"root", b"of all"), wire.listed(b"swap"), ACK, KNOWN, KNOWN
    exports, sent = succeeds(handshake.catalogue, SERVER, *said)
    assert exports == [Listed("root", "of all", wire.SIZE), Listed("swap", "", wire.SIZE)]
    asked = [wire.option(wire.LIST), wire.asks(wire.INFO, b"root"), wire.asks(wire.INFO, b"swap")]
    assert sent[1:] == [*asked, wire.option(wire.ABORT)]


@pytest.mark.row(7)
def test_empty_list_is_a_list() -> None:
    assert succeeds(handshake.catalogue, SERVER, HELLO, ACK)[0] == []


@pytest.mark.row(7)
def test_default_export_may_be_listed() -> None:
    exports, _ = succeeds(handshake.catalogue, SERVER, HELLO, wire.listed(b""), ACK, KNOWN)
    assert exports == [Listed("", "", wire.SIZE)]


@pytest.mark.row(7)
def test_size_of_0_is_no_size() -> None:
    """nbd-server announces 0 for every export in answer to NBD_OPT_INFO."""
    nothing, least = wire.sized(wire.INFO, 0) + wire.ack(wire.INFO), wire.sized(wire.INFO, 1) + wire.ack(wire.INFO)
    said = HELLO, wire.listed(b"root"), wire.listed(b"swap"), ACK, nothing, least
    exports, _ = succeeds(handshake.catalogue, SERVER, *said)
    assert exports == [Listed("root", "", None), Listed("swap", "", 1)]


@pytest.mark.row(7)
def test_list_without_info_has_no_sizes() -> None:
    said = HELLO, wire.listed(b"root", b"of all"), wire.listed(b"swap"), ACK, NO_INFO
    exports, sent = succeeds(handshake.catalogue, SERVER, *said)
    assert exports == [Listed("root", "of all", None), Listed("swap", "", None)]
    assert sent[-2:] == [wire.asks(wire.INFO, b"root"), wire.option(wire.ABORT)]


@pytest.mark.row(7)
@pytest.mark.parametrize("kind", [wire.POLICY, wire.UNKNOWN, wire.TLS_REQD, wire.SHUTDOWN, 0x8000FFFF])
def test_export_that_may_not_be_asked_about_has_no_size(kind: int) -> None:
    said = HELLO, wire.listed(b"root"), wire.listed(b"swap"), ACK, wire.reply(wire.INFO, kind, b"no"), KNOWN
    exports, _ = succeeds(handshake.catalogue, SERVER, *said)
    assert exports == [Listed("root", "", None), Listed("swap", "", wire.SIZE)]


@pytest.mark.row(7)
def test_description_is_kept_wherever_it_comes_from() -> None:
    told = wire.info(wire.INFO, 2, b"by INFO") + KNOWN
    exports, _ = succeeds(
        handshake.catalogue, SERVER, HELLO, wire.listed(b"a", b"by LIST"), wire.listed(b"b"), ACK, told, told
    )
    assert [one.description for one in exports] == ["by LIST", "by INFO"]


@pytest.mark.row(7)
def test_names_that_are_no_utf8_survive_the_way_back() -> None:
    exports, sent = succeeds(handshake.catalogue, SERVER, HELLO, wire.listed(b"a\xff"), ACK, KNOWN)
    assert exports[0].name == "a\udcff"
    assert sent[2] == wire.asks(wire.INFO, b"a\xff")


@pytest.mark.row(7)
def test_longest_name_and_description_are_taken() -> None:
    exports, _ = succeeds(handshake.catalogue, SERVER, HELLO, wire.listed(b"n" * 4096, b"d" * 4096), ACK, NO_INFO)
    assert exports == [Listed("n" * 4096, "d" * 4096, None)]


@pytest.mark.row(7)
@pytest.mark.parametrize(("name", "rest"), [(4097, 0), (4097, 4095), (0, 4097), (4095, 4097)])
def test_oversized_name_or_description_is_refused_before_reading_it(name: int, rest: int) -> None:
    error, played = fails(handshake.catalogue, SERVER, HELLO, wire.listed(b"n" * name, b"d" * rest))
    assert type(error) is BrokenProtocol
    assert str(error) == f"nbd://db1: a name of {name} bytes in an NBD_REP_SERVER of {4 + name + rest}"
    assert len(played.unread) == name + rest


@pytest.mark.row(7)
@pytest.mark.parametrize(("length", "name"), [(4, 1), (8, 5), (8, 0xFFFFFFFF), (8196, 8193)])
def test_name_longer_than_its_reply_is_refused(length: int, name: int) -> None:
    said = wire.header(wire.LIST, wire.SERVER, length) + struct.pack(">I", name) + b"more"
    error, played = fails(handshake.catalogue, SERVER, HELLO, said)
    assert str(error) == f"nbd://db1: a name of {name} bytes in an NBD_REP_SERVER of {length}"
    assert played.unread == b"more"


@pytest.mark.row(7)
@pytest.mark.parametrize("length", [0, 3, handshake.MAX_SERVER_REPLY + 1, 65536])
def test_reply_of_impossible_length_is_refused_before_reading_it(length: int) -> None:
    error, played = fails(handshake.catalogue, SERVER, HELLO, wire.header(wire.LIST, wire.SERVER, length), b"more")
    assert str(error) == f"nbd://db1: an NBD_REP_SERVER of {length} bytes"
    assert played.unread == b"more"


@pytest.mark.row(7)
def test_reply_of_4_gib_is_refused_before_reading_it() -> None:
    said = wire.header(wire.LIST, wire.SERVER, 0xFFFFFFFF)
    error, played = fails(handshake.catalogue, SERVER, HELLO, said, b"more")
    assert type(error) is BrokenProtocol
    assert played.unread == b"more"


@pytest.mark.row(7)
def test_list_reply_with_another_magic_is_refused() -> None:
    error, _ = fails(handshake.catalogue, SERVER, HELLO, wire.NBDMAGIC + bytes(12))
    assert str(error) == "nbd://db1: an option reply began with the magic 0x4e42444d41474943"


@pytest.mark.row(7)
def test_list_reply_to_another_option_is_refused() -> None:
    error, _ = fails(handshake.catalogue, SERVER, HELLO, wire.ack(wire.INFO))
    assert str(error) == "nbd://db1: a reply to option 6, but we had sent NBD_OPT_LIST"


@pytest.mark.row(7)
def test_list_reply_of_another_type_is_refused() -> None:
    error, _ = fails(handshake.catalogue, SERVER, HELLO, wire.reply(wire.LIST, wire.INFORMATION, bytes(12)))
    assert str(error) == "nbd://db1: NBD_REP_INFO in answer to NBD_OPT_LIST"


@pytest.mark.row(7)
def test_list_at_the_limit_is_taken() -> None:
    said = wire.listed(b"e") * handshake.MAX_EXPORTS
    exports, _ = succeeds(handshake.catalogue, SERVER, HELLO, said, ACK, NO_INFO)
    assert len(exports) == handshake.MAX_EXPORTS


@pytest.mark.row(7)
def test_too_many_exports_are_refused() -> None:
    said = wire.listed(b"e") * (handshake.MAX_EXPORTS + 1)
    error, played = fails(handshake.catalogue, SERVER, HELLO, said)
    assert str(error) == "nbd://db1: a list of more than 10000 exports or 8 MiB of names"
    assert len(played.unread) == 5


@pytest.mark.row(7)
def test_too_many_bytes_of_names_are_refused_before_reading_them() -> None:
    one = wire.listed(b"n" * 4096, b"d" * 4096)
    error, played = fails(handshake.catalogue, SERVER, HELLO, one * 1030)
    assert str(error) == "nbd://db1: a list of more than 10000 exports or 8 MiB of names"
    assert played.heard < handshake.MAX_LIST_BYTES + 20 * 1030


@pytest.mark.row(7)
@pytest.mark.parametrize("kind", [wire.POLICY, wire.PLATFORM, wire.SHUTDOWN, wire.UNSUP, wire.UNKNOWN])
def test_refused_list_is_left_politely(kind: int) -> None:
    error, played = fails(handshake.catalogue, SERVER, HELLO, wire.reply(wire.LIST, kind, b"no"))
    assert isinstance(error, Refused)
    assert error.cause.endswith("; it says: 'no'")
    assert played.sent[1:] == [wire.option(wire.LIST), wire.option(wire.ABORT)]


@pytest.mark.row(7)
def test_list_that_policy_forbids_says_how_to_allow_it() -> None:
    error, _ = fails(handshake.catalogue, SERVER, HELLO, wire.reply(wire.LIST, wire.POLICY, b"denied"))
    assert str(error) == "nbd://db1: the server's policy forbids listing its exports; it says: 'denied'"
    assert error.hint == (
        "nbd-server lists its exports with allowlist = true; nbdattach info -N NAME nbd://db1 shows one of them"
    )


@pytest.mark.row(7)
def test_list_that_requires_tls_says_how() -> None:
    error, _ = fails(handshake.catalogue, SERVER, HELLO, wire.reply(wire.LIST, wire.TLS_REQD))
    assert type(error) is TlsFailed
    assert (str(error), error.hint) == (
        "nbd://db1: the server requires TLS",
        "use --tls, or nbds://db1",
    )


@pytest.mark.row(7)
def test_list_closed_at_any_byte_is_no_connection() -> None:
    said = HELLO + wire.listed(b"root", b"of all") + wire.listed(b"swap") + ACK + KNOWN + KNOWN
    for end in range(len(said)):
        error, _ = fails(handshake.catalogue, SERVER, said[:end])
        assert isinstance(error, NoConnection)


@pytest.mark.row(7)
def test_hint_shows_eight_names_and_no_control_characters() -> None:
    listed = b"".join(wire.listed(b"\x1b%d" % number) for number in range(9)) + ACK
    unknown = wire.reply(wire.GO, wire.UNKNOWN)
    error, _ = fails(handshake.enter, Target(host="db1", export="x"), HELLO, unknown, listed)
    names = ", ".join(rf"\x1b{number}" for number in range(8))
    assert error.hint == f"it offers: {names}, ...; see nbdattach list nbd://db1"
