# SPDX-License-Identifier: GPL-2.0-or-later
"""NBD_OPT_STARTTLS: TLS asked for is TLS or nothing. No sockets, no TLS."""

from __future__ import annotations

import pytest
import wire
from script import fails, succeeds

from nbdattach.errors import BrokenProtocol, ConnectionLost, TlsFailed
from nbdattach.protocol import handshake
from nbdattach.protocol.steps import StartTls
from nbdattach.protocol.target import Target, parse_target

SECURE = Target(host="db1", export="disk", tls=True)
HELLO = wire.greeting()
YES = wire.ack(wire.STARTTLS)
ERRORS = [
    wire.UNSUP, wire.POLICY, wire.INVALID, wire.PLATFORM, wire.TLS_REQD,
    wire.UNKNOWN, wire.SHUTDOWN, wire.BLOCK_SIZE_REQD, wire.TOO_BIG, 0x80001234,
]  # fmt: skip


@pytest.mark.row(8)
def test_starttls_comes_before_anything_else() -> None:
    _, sent = succeeds(handshake.enter, SECURE, HELLO, YES, wire.sized(wire.GO), wire.ack(wire.GO))
    tls = [wire.option(wire.STARTTLS), StartTls("db1")]
    assert sent == [wire.client_flags(), *tls, wire.asks(wire.GO, b"disk")]


@pytest.mark.row(8)
def test_list_and_inspect_go_over_tls_too() -> None:
    for ask, said in (
        (handshake.inspect, wire.sized(wire.INFO) + wire.ack(wire.INFO)),
        (handshake.catalogue, wire.ack(wire.LIST)),
    ):
        _, sent = succeeds(ask, SECURE, HELLO, YES, said)
        assert sent[1:3] == [wire.option(wire.STARTTLS), StartTls("db1")]


@pytest.mark.row(8)
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("nbds://Db1.example:99/x", "db1.example"),
        ("nbds://[::1]/x", "::1"),
        ("nbds://10.0.0.1?tls-hostname=db1", "db1"),
        ("nbds+unix:///x?socket=/s&tls-hostname=db2", "db2"),
        ("nbds+unix:///x?socket=/s", ""),
    ],
)
def test_the_name_to_verify_is_passed_on(text: str, name: str) -> None:
    _, sent = succeeds(handshake.inspect, parse_target(text), HELLO, YES, wire.sized(wire.INFO), wire.ack(wire.INFO))
    assert sent[2] == StartTls(name)


@pytest.mark.row(8)
@pytest.mark.parametrize("flags", [0, wire.NO_ZEROES])
def test_plain_new_style_is_refused_and_told_no_name(flags: int) -> None:
    error, played = fails(handshake.enter, SECURE, wire.greeting(flags))
    assert type(error) is TlsFailed
    assert str(error) == "nbds://db1/disk: a server without fixed newstyle cannot do TLS"
    assert played.sent == [wire.client_flags(flags)]


@pytest.mark.row(8)
@pytest.mark.parametrize("kind", ERRORS)
def test_each_error_in_answer_to_starttls_is_tls_failed(kind: int) -> None:
    error, played = fails(handshake.enter, SECURE, HELLO, wire.reply(wire.STARTTLS, kind, b"no"))
    assert type(error) is TlsFailed
    assert error.exit_code == 5
    assert "'no'" in error.cause
    assert wire.asks(wire.GO, b"disk") not in played.sent


@pytest.mark.row(8)
def test_refused_starttls_says_why() -> None:
    error, played = fails(handshake.enter, SECURE, HELLO, wire.reply(wire.STARTTLS, wire.POLICY, b"no"))
    assert str(error) == (
        "nbds://db1/disk: the server refuses TLS: the server's policy forbids NBD_OPT_STARTTLS; it says: 'no'"
    )
    assert error.hint == "enable TLS on the server; no data was sent unencrypted"
    assert played.sent == [wire.client_flags(), wire.option(wire.STARTTLS), wire.option(wire.ABORT)]


@pytest.mark.row(8)
@pytest.mark.parametrize("option", [wire.STARTTLS, wire.GO])
def test_a_target_with_tls_is_not_told_to_write_nbds(option: int) -> None:
    said = wire.reply(option, wire.TLS_REQD)
    error, _ = fails(handshake.enter, SECURE, HELLO, said if option == wire.STARTTLS else YES + said)
    assert type(error) is TlsFailed
    assert (str(error), error.hint) == (
        "nbds://db1/disk: the server requires TLS",
        "TLS is in use already; see the server's log",
    )


@pytest.mark.row(8)
@pytest.mark.parametrize(
    "answer",
    [wire.header(wire.STARTTLS, wire.ACK, 1), wire.ack(wire.GO), wire.reply(wire.STARTTLS, wire.SERVER), bytes(20)],
)
def test_broken_answer_to_starttls_starts_nothing(answer: bytes) -> None:
    error, played = fails(handshake.enter, SECURE, HELLO, answer, b"more")
    assert type(error) is BrokenProtocol
    assert played.sent == [wire.client_flags(), wire.option(wire.STARTTLS)]
    assert played.unread == b"more"


@pytest.mark.row(8)
def test_connection_lost_in_answer_to_starttls_says_so() -> None:
    for end in range(len(YES)):
        error, played = fails(handshake.enter, SECURE, HELLO, YES[:end])
        assert type(error) is ConnectionLost
        assert played.sent == [wire.client_flags(), wire.option(wire.STARTTLS)]


@pytest.mark.row(8)
def test_not_a_byte_is_read_between_the_ack_and_tls() -> None:
    """Bytes that a man in the middle puts there would count as sent inside TLS."""
    injected = wire.sized(wire.GO) + wire.ack(wire.GO)
    _, played = fails(handshake.enter, SECURE, HELLO, YES, injected[:-1])
    before_tls = played.receives[:4]
    assert sum(before_tls) == len(HELLO + YES)
    assert played.sent[2] == StartTls("db1")


@pytest.mark.row(8)
def test_server_that_fell_back_in_tls_is_asked_by_name_inside_tls() -> None:
    said = HELLO, YES, wire.reply(wire.GO, wire.UNSUP), wire.listed(b"disk"), wire.ack(wire.LIST), wire.exported()
    _, sent = succeeds(handshake.enter, SECURE, *said)
    assert sent.index(StartTls("db1")) < sent.index(wire.option(wire.EXPORT_NAME, b"disk"))
