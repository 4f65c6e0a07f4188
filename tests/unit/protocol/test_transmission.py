# SPDX-License-Identifier: GPL-2.0-or-later
"""The transmission phase in userspace, as much of it as `check` needs. No sockets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import wire
from script import fails, succeeds

from nbdattach.errors import BrokenProtocol, ConnectionLost, DeadlinePassed, NoConnection, Refused, TlsFailed
from nbdattach.protocol import transmission
from nbdattach.protocol.steps import Note, Send, Steps
from nbdattach.protocol.target import Target

SERVER = Target(host="db1")
COOKIE = 0x0123456789ABCDEF
DATA = bytes(range(256)) * 2


def reading(offset: int = 0, length: int = 512) -> Callable[[Target], Steps[bytes]]:
    return lambda target: transmission.read(target.uri, offset, length, COOKIE)


@pytest.mark.row(12)
def test_read_is_a_request_of_28_bytes_and_a_reply_of_16() -> None:
    data, sent = succeeds(reading(4096), SERVER, wire.simple_reply(0, COOKIE), DATA)
    assert data == DATA
    assert sent == [wire.request(0, COOKIE, 4096, 512)]
    assert [len(one) for one in (wire.request(0), wire.simple_reply(0, 0))] == [28, 16]


@pytest.mark.row(12)
def test_request_on_the_wire() -> None:
    _, sent = succeeds(reading((1 << 63) + 1, 512), SERVER, wire.simple_reply(0, COOKIE), DATA)
    assert sent == [bytes.fromhex("25609513 0000 0000 0123456789abcdef 8000000000000001 00000200")]


@pytest.mark.row(12)
def test_header_is_read_before_the_data() -> None:
    _, played = fails(reading(), SERVER, wire.simple_reply(0, COOKIE), DATA[:-1])
    assert played.receives == [16, 512]


@pytest.mark.row(12)
@pytest.mark.parametrize("magic", ["00000000", "668e33ef", "67446699", "25609513"])
def test_another_magic_is_refused_before_the_data(magic: str) -> None:
    said = bytes.fromhex(magic) + wire.simple_reply(0, COOKIE)[4:]
    error, played = fails(reading(), SERVER, said, DATA)
    assert type(error) is BrokenProtocol
    assert str(error) == f"nbd://db1: the server answered a read with the magic {int(magic, 16):#x}"
    assert played.unread == DATA


@pytest.mark.row(12)
def test_another_cookie_is_refused_before_the_data() -> None:
    error, played = fails(reading(), SERVER, wire.simple_reply(0, 7), DATA)
    assert type(error) is BrokenProtocol
    assert str(error) == "nbd://db1: the server answered request 0x7, but we had sent 0x123456789abcdef"
    assert played.unread == DATA


ERRORS = {
    1: "operation not permitted",
    5: "input/output error",
    12: "cannot allocate memory",
    22: "invalid argument",
    28: "no space left on device",
    75: "value too large",
    95: "operation not supported",
    108: "server is shutting down",
}


@pytest.mark.row(12)
@pytest.mark.parametrize("number", ERRORS)
def test_error_of_the_server_has_its_words(number: int) -> None:
    error, played = fails(reading(4096), SERVER, wire.simple_reply(number, COOKIE))
    assert type(error) is Refused
    assert str(error) == f"nbd://db1: reading 512 bytes at 4096 failed: {ERRORS[number]} ({number})"
    assert error.hint == "see the server's log"
    assert played.receives == [16]


@pytest.mark.row(12)
@pytest.mark.parametrize("number", [2, 13, 110, 0x80000000, 0xFFFFFFFF])
def test_unknown_error_counts_as_einval(number: int) -> None:
    assert transmission.error_words(number) == (22, "invalid argument")
    error, _ = fails(reading(), SERVER, wire.simple_reply(number, COOKIE))
    assert str(error) == "nbd://db1: reading 512 bytes at 0 failed: invalid argument (22)"


@pytest.mark.row(12)
def test_reply_closed_at_any_byte_is_a_lost_connection() -> None:
    said = wire.simple_reply(0, COOKIE) + DATA
    for end in range(len(said)):
        error, _ = fails(reading(), SERVER, said[:end])
        assert type(error) is ConnectionLost


@pytest.mark.row(12)
def test_disconnect_is_a_request_without_a_reply() -> None:
    _, sent = succeeds(lambda _: transmission.disconnect(), SERVER)
    assert sent == [bytes.fromhex("25609513 0000 0002") + bytes(20)]


@pytest.mark.row(12)
@pytest.mark.parametrize("gone", [ConnectionLost("db1", "gone"), DeadlinePassed("db1", 1, "gone")])
def test_server_that_has_gone_needs_no_goodbye(gone: NoConnection) -> None:
    steps = transmission.disconnect()
    assert next(steps) == Note("NBD_CMD_DISC")
    assert steps.send(b"") == Send(wire.DISC)
    with pytest.raises(StopIteration) as ended:
        steps.throw(gone)
    assert ended.value.value is None


@pytest.mark.row(12)
def test_other_errors_of_the_goodbye_are_told() -> None:
    steps = transmission.disconnect()
    next(steps)
    steps.send(b"")
    with pytest.raises(TlsFailed):
        steps.throw(TlsFailed("db1", "broken", "mend it"))


@pytest.mark.row(13)
def test_requests_can_be_seen() -> None:
    _, played = fails(reading(4096), SERVER)
    assert played.notes == ["NBD_CMD_READ of 512 bytes at 4096"]


def test_disconnect_is_recognised_at_the_end_of_what_was_sent_and_nowhere_else() -> None:
    assert transmission.ends_with_disconnect(wire.request(0) + wire.request(2))
    for sent in (b"", wire.request(0), wire.request(2)[1:], wire.request(2) + wire.request(0), bytes(28)):
        assert not transmission.ends_with_disconnect(sent)


# -- several reads at once ---------------------------------------------------------------------------------------------

PARTS = [(0, 512), (4096, 1024)]


def reading_all(most: int = 1 << 20) -> Callable[[Target], Steps[list[bytes]]]:
    return lambda target: transmission.read_all(target.uri, PARTS, most, COOKIE)


def reply(number: int, error: int = 0) -> bytes:
    return wire.simple_reply(error, COOKIE + number)


@pytest.mark.row(12)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_all_parts_are_asked_for_at_once_and_answered_in_any_order(order: tuple[int, int]) -> None:
    data = [DATA, DATA * 2]
    said = [piece for number in order for piece in (reply(number), data[number])]
    found, sent = succeeds(reading_all(), SERVER, *said)
    assert found == data
    assert sent == [wire.request(0, COOKIE, 0, 512) + wire.request(0, COOKIE + 1, 4096, 1024)]


@pytest.mark.row(12)
def test_no_request_is_larger_than_the_servers_maximum() -> None:
    said = [reply(2), DATA, reply(0), bytes(512), reply(1), bytes(512)]
    found, sent = succeeds(reading_all(512), SERVER, *said)
    assert found == [bytes(512), bytes(512) + DATA]
    assert isinstance(sent[0], bytes)
    assert len(sent[0]) == 3 * 28


@pytest.mark.row(12)
def test_an_error_of_one_part_is_raised_when_all_have_been_answered() -> None:
    error, played = fails(reading_all(), SERVER, reply(0, 5), reply(1), DATA * 2, b"next")
    assert type(error) is Refused
    assert str(error).startswith("nbd://db1: reading 512 bytes at 0 failed: ")
    assert played.unread == b"next"


@pytest.mark.row(12)
@pytest.mark.parametrize("number", [2, -1, 1 << 40])
def test_an_answer_to_no_part_is_refused(number: int) -> None:
    error, _ = fails(reading_all(), SERVER, reply(0), DATA, reply(number), DATA)
    assert type(error) is BrokenProtocol


@pytest.mark.row(12)
def test_a_part_that_is_answered_twice_is_refused() -> None:
    error, _ = fails(reading_all(), SERVER, reply(0), DATA, reply(0), DATA)
    assert type(error) is BrokenProtocol
