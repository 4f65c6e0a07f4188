# SPDX-License-Identifier: GPL-2.0-or-later
"""The first bytes of a server: new style, old style, or something else. No sockets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import wire
from script import drip, fails, succeeds

from nbdattach.errors import BrokenProtocol, ConnectionLost, Refused, TlsFailed
from nbdattach.protocol import handshake
from nbdattach.protocol.export import Export
from nbdattach.protocol.steps import Steps
from nbdattach.protocol.target import Target

DEFAULT = Target(host="db1")
NAMED = Target(host="db1", export="disk")
HINT = "is this an NBD server? --debug shows each step"


@pytest.mark.row(1)
def test_bad_first_magic_is_named() -> None:
    error, played = fails(handshake.enter, DEFAULT, b"SSH-2.0-OpenSSH")
    assert str(error) == "nbd://db1: not an NBD server: it began with 'SSH-2.0-', not NBDMAGIC"
    assert error.hint == HINT
    assert played.unread == b"OpenSSH"
    assert played.sent == []


@pytest.mark.row(1)
def test_bad_first_magic_cannot_write_on_the_terminal() -> None:
    error, _ = fails(handshake.enter, DEFAULT, b"\x1b[2J\n\r'\x9b")
    assert str(error) == r"nbd://db1: not an NBD server: it began with '\x1b[2J\n\r\'\x9b', not NBDMAGIC"


@pytest.mark.row(1)
def test_bad_second_magic_is_named() -> None:
    error, played = fails(handshake.enter, DEFAULT, wire.NBDMAGIC, b"IHAVEOPS", b"more")
    assert type(error) is BrokenProtocol
    assert str(error) == "nbd://db1: neither a new nor an old style NBD server: 'IHAVEOPS'"
    assert error.hint == HINT
    assert played.unread == b"more"


@pytest.mark.row(1)
@pytest.mark.parametrize("said", [wire.greeting(), wire.oldstyle()], ids=["new", "old"])
def test_a_connection_closed_at_any_byte_of_the_greeting_says_so(said: bytes) -> None:
    for end in range(len(said)):
        error, played = fails(handshake.enter, DEFAULT, said[:end])
        assert type(error) is ConnectionLost
        assert played.sent == []


@pytest.mark.row(1)
def test_a_closed_connection_tells_what_was_waited_for() -> None:
    with pytest.raises(ConnectionLost) as caught:
        drip(handshake.enter(DEFAULT), DEFAULT, b"NBD")
    assert str(caught.value) == "nbd://db1: the server closed the connection (waiting for the server's greeting)"
    assert caught.value.hint == "is it an NBD server, does it accept one more client, did it just stop? see its log"


@pytest.mark.row(2)
@pytest.mark.parametrize("flags", [wire.FIXED, wire.FIXED | wire.NO_ZEROES, wire.FIXED | 0xFFFC])
def test_fixed_server_gets_only_the_client_flags_it_offered(flags: int) -> None:
    export, sent = succeeds(handshake.enter, DEFAULT, wire.greeting(flags), wire.sized(wire.GO), wire.ack(wire.GO))
    assert sent == [wire.client_flags(flags & 3), wire.asks(wire.GO)]
    assert export.protocol == "newstyle-fixed"


@pytest.mark.row(2)
@pytest.mark.parametrize("flags", [0, 0xFFFC])
def test_plain_new_style_goes_straight_to_export_name_and_reads_the_zeroes(flags: int) -> None:
    export, sent = succeeds(handshake.enter, NAMED, wire.greeting(flags), wire.exported(zeroes=wire.ZEROES))
    assert sent == [wire.client_flags(0), wire.option(wire.EXPORT_NAME, b"disk")]
    assert export == Export("disk", wire.SIZE, wire.FLAGS, "newstyle")


@pytest.mark.row(2)
def test_plain_new_style_with_no_zeroes_sends_none() -> None:
    export, sent = succeeds(handshake.enter, NAMED, wire.greeting(wire.NO_ZEROES), wire.exported())
    assert sent == [wire.client_flags(wire.NO_ZEROES), wire.option(wire.EXPORT_NAME, b"disk")]
    assert export.protocol == "newstyle"


@pytest.mark.row(2)
def test_missing_zeroes_are_a_lost_connection() -> None:
    said = wire.greeting(0) + wire.exported(zeroes=wire.ZEROES[:-1])
    error, _ = fails(handshake.enter, NAMED, said)
    assert type(error) is ConnectionLost


@pytest.mark.row(2)
def test_inspect_of_plain_new_style_leaves_by_the_transmission_phase() -> None:
    _, sent = succeeds(handshake.inspect, NAMED, wire.greeting(wire.NO_ZEROES), wire.exported())
    assert sent[-1] == wire.DISC


@pytest.mark.row(2)
def test_plain_new_style_cannot_list() -> None:
    error, played = fails(handshake.catalogue, DEFAULT, wire.greeting(0))
    assert type(error) is Refused
    assert str(error) == "nbd://db1: a server without fixed newstyle cannot list its exports"
    assert error.hint == "see nbdattach info nbd://db1"
    assert played.sent == [wire.client_flags(0)]


@pytest.mark.row(3)
@pytest.mark.parametrize("size", [0, 1, 1 << 62, (1 << 64) - 1])
def test_old_style_tells_size_and_flags_and_is_sent_nothing(size: int) -> None:
    export, sent = succeeds(handshake.enter, DEFAULT, wire.oldstyle(size, 0xFFFF))
    assert export == Export("", size, 0xFFFF, "oldstyle")
    assert sent == []


@pytest.mark.row(3)
@pytest.mark.parametrize("flags", [0x10000, 0x80000003, 0xFFFFFFFF])
def test_old_style_flags_above_16_bits_are_refused(flags: int) -> None:
    error, played = fails(handshake.enter, DEFAULT, wire.oldstyle(wire.SIZE, flags))
    assert type(error) is BrokenProtocol
    assert str(error) == f"nbd://db1: an old style server with unknown flags {flags:#x}"
    assert played.unread == wire.ZEROES


@pytest.mark.row(3)
@pytest.mark.parametrize("ask", [handshake.enter, handshake.inspect])
def test_old_style_refuses_an_export_name(ask: Callable[[Target], Steps[Export]]) -> None:
    error, played = fails(ask, NAMED, wire.oldstyle())
    assert type(error) is Refused
    assert str(error) == "nbd://db1/disk: an old style server has one export, without a name"
    assert error.hint == "leave the name out: nbd://db1"
    assert played.sent == [wire.DISC]


@pytest.mark.row(3)
@pytest.mark.parametrize("export", ["", "disk"])
def test_old_style_refuses_tls_and_is_sent_nothing_in_the_clear(export: str) -> None:
    error, played = fails(handshake.enter, Target(host="db1", tls=True, export=export), wire.oldstyle())
    assert type(error) is TlsFailed
    assert error.cause == "an old style server cannot do TLS"
    assert error.exit_code == 5
    assert played.sent == []


@pytest.mark.row(3)
def test_inspect_of_old_style_leaves_politely() -> None:
    export, sent = succeeds(handshake.inspect, DEFAULT, wire.oldstyle())
    assert export.protocol == "oldstyle"
    assert sent == [wire.DISC]


@pytest.mark.row(3)
def test_old_style_cannot_list() -> None:
    error, played = fails(handshake.catalogue, DEFAULT, wire.oldstyle())
    assert type(error) is Refused
    assert str(error) == "nbd://db1: an old style server has one export and cannot list it"
    assert played.sent == [wire.DISC]
