# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions to a server without a kernel driver: `check` most of all. Over the loopback."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import wire
from peer import closed_port, listening, says, says_and_hears

from nbdattach.backends.limits import attachable
from nbdattach.connection import client
from nbdattach.errors import (
    BrokenProtocol,
    ConnectionLost,
    KernelRefused,
    NbdattachError,
    NoConnection,
    Refused,
    UnknownExport,
)
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
        checked = client.check(target, attachable, PATIENCE)
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
        (1023, None, 512),
        (4095, None, 3584),
        ((1 << 63) - 1, None, 4096),
        (1 << 20, (1, 4096, 4096), 4096),
        (1 << 20, (4096, 65536, 1 << 25), 4096),
        (1000, (512, 4096, 1 << 25), 512),
        (1000, (1, 4096, 1 << 25), 512),
    ],
)
def test_check_reads_whole_blocks_of_the_device_that_connect_would_make(
    size: int, blocks: tuple[int, int, int] | None, length: int
) -> None:
    sizes = wire.blocks(wire.GO, *blocks) if blocks else b""
    said = entering(size, sizes) + ANSWER + bytes(length)
    assert requests(said) == wire.request(0, COOKIE, 0, length) + wire.DISC


UNATTACHABLE: list[tuple[int, tuple[int, int, int] | None, type[NbdattachError], str]] = [
    (0, None, Refused, "the export has 0 bytes, less than one block of 512"),
    (511, None, Refused, "the export has 511 bytes, less than one block of 512"),
    (512, (4096, 4096, 65536), Refused, "the export has 512 bytes, less than one block of 4096"),
    (
        1 << 20,
        (65536, 65536, 65536),
        KernelRefused,
        "the server's minimum block size is 65536, but the kernel accepts at most 4096",
    ),
    (
        1 << 20,
        (512, 512, 512),
        KernelRefused,
        "the server accepts only 512 bytes per request, the kernel sends at least 4096",
    ),
    (1 << 63, None, KernelRefused, "an export of 9223372036854775808 bytes: Argument list too long (E2BIG)"),
]


@pytest.mark.row(12)
@pytest.mark.parametrize(("size", "blocks", "of", "cause"), UNATTACHABLE)
def test_check_of_an_export_that_connect_refuses_is_not_ok(
    size: int, blocks: tuple[int, int, int] | None, of: type[NbdattachError], cause: str
) -> None:
    """It reads nothing, has no time of a read, and leaves politely; the error is that of connect."""
    said, heard = entering(size, wire.blocks(wire.GO, *blocks) if blocks else b""), list[bytes]()
    with listening(says_and_hears(said, heard)) as target:
        checked = client.check(target, attachable, PATIENCE)
    assert type(checked.error) is of
    assert str(checked.error) == f"{target.uri}: {cause}"
    assert checked.handshake_ms is not None
    assert checked.read_ms is None
    assert heard[0].removeprefix(wire.client_flags() + wire.asks(wire.GO)) == wire.DISC


@pytest.mark.row(12)
def test_check_tells_a_failed_read_in_its_result() -> None:
    with listening(says_and_hears(entering(4096) + wire.simple_reply(5, COOKIE), [])) as target:
        checked = client.check(target, attachable, PATIENCE)
    assert type(checked.error) is Refused
    assert checked.handshake_ms is not None
    assert checked.read_ms is None
    assert str(checked.error) == f"{target.uri}: reading 4096 bytes at 0 failed: input/output error (5)"


@pytest.mark.row(12)
def test_check_tells_a_broken_reply_in_its_result() -> None:
    with listening(says_and_hears(entering(4096) + bytes(16), [])) as target:
        assert type(client.check(target, attachable, PATIENCE).error) is BrokenProtocol


def test_check_raises_nothing_when_there_is_no_connection() -> None:
    checked = client.check(Target("127.0.0.1", closed_port()), attachable, PATIENCE)
    assert isinstance(checked.error, NoConnection)
    assert (checked.handshake_ms, checked.read_ms) == (None, None)


def test_check_of_a_server_that_dies_before_the_read_is_no_connection() -> None:
    with listening(says(entering(4096))) as target:
        assert isinstance(client.check(target, attachable, PATIENCE).error, ConnectionLost)


def test_server_that_is_gone_before_the_goodbye_has_passed_the_check(tmp_path: Path) -> None:
    def serve(sock: socket.socket) -> None:
        sock.sendall(entering(4096))
        asked = b""
        while not asked.endswith(wire.request(0, COOKIE, 0, 4096)):
            asked += sock.recv(4096)
        sock.shutdown(socket.SHUT_RD)
        sock.sendall(ANSWER + bytes(4096))

    with listening(serve, tmp_path / "s") as target:
        checked = client.check(target, attachable, PATIENCE)
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
    said = wire.greeting() + wire.reply(wire.INFO, wire.UNKNOWN) + wire.listed(b"root") + wire.ack(wire.LIST)
    with listening(says_and_hears(said, [])) as target, pytest.raises(UnknownExport, match="no export named 'x'"):
        client.inspect(Target(target.host, target.port, export="x"), PATIENCE)
