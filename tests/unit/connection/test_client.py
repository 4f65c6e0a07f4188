# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions to a server without a kernel driver: `check` most of all. Over the loopback."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import wire
from peer import closed_port, listening, says, says_and_hears

from nbdattach.connection import client
from nbdattach.errors import BrokenProtocol, ConnectionLost, NoConnection, Refused, UnknownExport
from nbdattach.protocol.target import Target

PATIENCE = 60.0
COOKIE = client.CHECK_COOKIE
ANSWER = wire.simple_reply(0, COOKIE)


def entering(size: int, *more: bytes) -> bytes:
    return wire.greeting() + wire.sized(wire.GO, size) + b"".join(more) + wire.ack(wire.GO)


def requests(said: bytes) -> bytes:
    """The requests of `check` to such a server in the transmission phase."""
    heard: list[bytes] = []
    with listening(says_and_hears(said, heard)) as target:
        checked = client.check(target, PATIENCE)
    assert checked.error is None
    assert checked.handshake_ms is not None
    assert checked.read_ms is not None
    return heard[0].removeprefix(wire.client_flags() + wire.asks(wire.GO))


@pytest.mark.row(12)
def test_check_reads_a_page_and_leaves() -> None:
    assert requests(entering(1 << 20) + ANSWER + bytes(4096)) == wire.request(0, COOKIE, 0, 4096) + wire.DISC


@pytest.mark.row(12)
@pytest.mark.parametrize(
    ("size", "blocks", "length"),
    [
        (1, None, 1),
        (4095, None, 4095),
        ((1 << 64) - 1, None, 4096),
        (1 << 20, (1, 4096, 512), 512),
        (1 << 20, (65536, 65536, 1 << 25), 65536),
        (1000, (512, 4096, 1 << 25), 512),
        (1 << 20, (512, 4096, 1000), 512),
    ],
)
def test_check_reads_whole_blocks_within_the_servers_limits(
    size: int, blocks: tuple[int, int, int] | None, length: int
) -> None:
    sizes = wire.blocks(wire.GO, *blocks) if blocks else b""
    said = entering(size, sizes) + ANSWER + bytes(length)
    assert requests(said) == wire.request(0, COOKIE, 0, length) + wire.DISC


@pytest.mark.row(12)
@pytest.mark.parametrize("size", [0, 511])
def test_check_of_an_export_without_a_whole_block_reads_nothing(size: int) -> None:
    assert requests(entering(size, wire.blocks(wire.GO, 512, 512, 512))) == wire.DISC


@pytest.mark.row(12)
def test_check_tells_a_failed_read_in_its_result() -> None:
    with listening(says_and_hears(entering(4096) + wire.simple_reply(5, COOKIE), [])) as target:
        checked = client.check(target, PATIENCE)
    assert type(checked.error) is Refused
    assert checked.handshake_ms is not None
    assert checked.read_ms is None
    assert str(checked.error) == f"{target.uri}: reading 4096 bytes at 0 failed: input/output error (5)"


@pytest.mark.row(12)
def test_check_tells_a_broken_reply_in_its_result() -> None:
    with listening(says_and_hears(entering(4096) + bytes(16), [])) as target:
        assert type(client.check(target, PATIENCE).error) is BrokenProtocol


def test_check_raises_nothing_when_there_is_no_connection() -> None:
    checked = client.check(Target("127.0.0.1", closed_port()), PATIENCE)
    assert isinstance(checked.error, NoConnection)
    assert (checked.handshake_ms, checked.read_ms) == (None, None)


def test_check_of_a_server_that_dies_before_the_read_is_no_connection() -> None:
    with listening(says(entering(4096))) as target:
        assert isinstance(client.check(target, PATIENCE).error, ConnectionLost)


def test_server_that_is_gone_before_the_goodbye_has_passed_the_check(tmp_path: Path) -> None:
    def serve(sock: socket.socket) -> None:
        sock.sendall(entering(4096))
        asked = b""
        while not asked.endswith(wire.request(0, COOKIE, 0, 4096)):
            asked += sock.recv(4096)
        sock.shutdown(socket.SHUT_RD)
        sock.sendall(ANSWER + bytes(4096))

    with listening(serve, tmp_path / "s") as target:
        checked = client.check(target, PATIENCE)
    assert checked.error is None
    assert checked.read_ms is not None


def test_list_of_a_server_that_goes_before_abort_is_a_list(tmp_path: Path) -> None:
    with listening(says_and_hears(wire.greeting() + wire.ack(wire.LIST), []), tmp_path / "s") as target:
        assert client.list_exports(target, PATIENCE) == []


def test_connection_is_ready_for_the_kernel() -> None:
    """Not a byte of the transmission phase is taken."""
    with listening(says_and_hears(entering(4096) + b"first of the kernel", [])) as target:
        connection = client.connect(target, PATIENCE)
        with connection.stream as stream:
            assert stream.sock.recv(99) == b"first of the kernel"
    assert connection.export.size == 4096


def test_unknown_export_over_a_socket() -> None:
    said = wire.greeting() + wire.reply(wire.GO, wire.UNKNOWN) + wire.listed(b"root") + wire.ack(wire.LIST)
    with listening(says_and_hears(said, [])) as target, pytest.raises(UnknownExport, match="no export named 'x'"):
        client.inspect(Target(target.host, target.port, export="x"), PATIENCE)
