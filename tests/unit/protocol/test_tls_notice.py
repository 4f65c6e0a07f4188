# SPDX-License-Identifier: GPL-2.0-or-later
"""The notice of nbdkit's filter tls-fallback is no disk. No sockets."""

from __future__ import annotations

import pytest
import wire
from script import fails, succeeds

from nbdattach.errors import TlsFailed
from nbdattach.protocol import handshake
from nbdattach.protocol.options import advice_of_tls
from nbdattach.protocol.target import Target
from nbdattach.protocol.tls_notice import COOKIE

TARGET = Target(host="db1", export="disk")
NOTICE = b"This NBD server requires TLS authentication before it will serve useful data.\n"
SHOWN = NOTICE + bytes(512 - len(NOTICE))
READ = wire.request(0, COOKIE, 0, 512)
HELLO = wire.greeting()
INFO = wire.sized(wire.INFO, 512) + wire.ack(wire.INFO)
GO = wire.sized(wire.GO, 512) + wire.ack(wire.GO)
READ_ONLY_WITH_FLUSH, READ_WRITE = 0x0007, 0x0001


def answer(content: bytes) -> bytes:
    return wire.simple_reply(0, COOKIE) + content


@pytest.mark.row(16)
def test_notice_is_refused_and_the_server_is_left_politely() -> None:
    error, played = fails(handshake.enter, TARGET, HELLO, GO, answer(SHOWN))
    assert type(error) is TlsFailed
    assert str(error) == (
        "nbd://db1/disk: the server requires TLS: without it, it shows a notice of 512 bytes in place of the export"
    )
    assert error.hint == "use --tls, or nbds://db1/disk"
    assert played.sent[1:] == [wire.asks(wire.GO, b"disk"), READ, wire.DISC]


@pytest.mark.row(16)
def test_notice_of_an_old_server_is_refused() -> None:
    for said in (wire.oldstyle(512), wire.greeting(wire.NO_ZEROES) + wire.exported(512)):
        error, _ = fails(handshake.enter, Target(host="db1"), said, answer(SHOWN))
        assert type(error) is TlsFailed


@pytest.mark.row(16)
def test_inspect_enters_to_see_whether_it_is_a_notice() -> None:
    error, played = fails(handshake.inspect, TARGET, HELLO, INFO, GO, answer(SHOWN))
    assert type(error) is TlsFailed
    assert played.sent[1:] == [wire.asks(wire.INFO, b"disk"), wire.asks(wire.GO, b"disk"), READ, wire.DISC]


@pytest.mark.row(16)
@pytest.mark.parametrize(
    "content", [answer(bytes(512)), answer(SHOWN[:-1] + b"x"), answer(b"\n" + SHOWN[:-1]), wire.simple_reply(5, COOKIE)]
)
def test_small_disk_of_other_content_or_a_bad_sector_is_a_disk(content: bytes) -> None:
    export, sent = succeeds(handshake.enter, TARGET, HELLO, GO, content)
    assert export.size == 512
    assert sent[1:] == [wire.asks(wire.GO, b"disk"), READ]
    export, sent = succeeds(handshake.inspect, TARGET, HELLO, INFO, GO, content)
    assert export.size == 512
    assert sent[-1] == wire.DISC


@pytest.mark.row(16)
@pytest.mark.parametrize(
    "told",
    [
        wire.sized(wire.GO, 511),
        wire.sized(wire.GO, 1024),
        wire.sized(wire.GO, 512, READ_WRITE),
        wire.sized(wire.GO, 512, READ_ONLY_WITH_FLUSH),
        wire.sized(wire.GO, 512) + wire.blocks(wire.GO, 1, 4096, 1 << 25),
    ],
)
def test_nothing_else_is_read(told: bytes) -> None:
    _, sent = succeeds(handshake.enter, TARGET, HELLO, told, wire.ack(wire.GO))
    assert sent[1:] == [wire.asks(wire.GO, b"disk")]


@pytest.mark.row(16)
def test_over_tls_nothing_is_read() -> None:
    _, sent = succeeds(handshake.enter, Target(host="db1", tls=True), HELLO, wire.ack(wire.STARTTLS), GO)
    assert sent[-1] == wire.asks(wire.GO)


def test_advice_names_the_whole_export() -> None:
    name = "x" * 300
    assert advice_of_tls(Target("db1", export=name)) == f"use --tls, or nbds://db1/{name}"
