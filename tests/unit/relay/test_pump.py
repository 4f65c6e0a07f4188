# SPDX-License-Identifier: GPL-2.0-or-later
"""The pump of a relay: socketpairs as the kernel's connection, TLS servers in this process."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import queue
import random
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from certificates import make

from nbdattach.relay.buffer import BUFFER
from nbdattach.relay.loop import Pumps
from nbdattach.relay.pump import Pump

DISCONNECT = struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0)
REQUEST = struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, 0, 4096)
LARGE = 24 << 20
SOON = 60.0
CLOSED = ["connection lost: the server closed it"]  # the same text with every version of OpenSSL


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["TLSv1_2", "TLSv1_3"])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    return ssl.TLSVersion[request.param]


@pytest.fixture
def pumps() -> Iterator[Pumps]:
    """The loop, in a thread; it ends when its connections have ended."""
    loop = Pumps()
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    yield loop
    loop.finish()
    thread.join(SOON)
    assert not thread.is_alive()


class Pumped:
    """The kernel's end and the server's of one connection through the pump."""

    def __init__(self, pumps: Pumps, authority: Path, version: ssl.TLSVersion, small: bool = False) -> None:
        inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        inside.load_cert_chain(authority / "server-cert.pem", authority / "server-key.pem")
        inside.minimum_version = inside.maximum_version = version
        outside = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # as in `tls`; the default one is stricter since Python 3.13
        outside.load_verify_locations(cafile=str(authority / "ca-cert.pem"))
        with socket.create_server(("127.0.0.1", 0)) as door:
            client = socket.socket()
            if small:
                for one in (door, client):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            client.connect(door.getsockname())
            plain, _ = door.accept()
        accepted: list[ssl.SSLSocket] = []
        thread = threading.Thread(target=lambda: accepted.append(inside.wrap_socket(plain, server_side=True)))
        thread.start()
        wrapped = outside.wrap_socket(client, server_hostname="localhost")
        thread.join()
        self.server = accepted[0]
        self.server.settimeout(SOON)
        self.kernel, other = socket.socketpair()
        self.kernel.settimeout(SOON)
        self.said: list[str] = []
        self.pump = Pump(other, wrapped, self.said.append)
        pumps.add(self.pump)

    def close(self) -> None:
        self.kernel.close()
        self.server.close()


@pytest.fixture
def pumped(pumps: Pumps, authority: Path, version: ssl.TLSVersion) -> Iterator[Pumped]:
    one = Pumped(pumps, authority, version)
    yield one
    one.close()


def send_noise(sock: socket.socket, size: int, seed: int) -> str:
    """Pieces of all sizes; their SHA-256."""
    chance, digest = random.Random(seed), hashlib.sha256()
    while size:
        piece = os.urandom(min(size, chance.choice((1, 28, 4096, 16384, 16385, 300_000))))
        digest.update(piece)
        sock.sendall(piece)
        size -= len(piece)
    return digest.hexdigest()


def receive(sock: socket.socket, size: int, pause: float = 0.0) -> str:
    digest = hashlib.sha256()
    while size:
        piece = sock.recv(min(size, 1 << 18))
        assert piece
        digest.update(piece)
        size -= len(piece)
        time.sleep(pause)
    return digest.hexdigest()


def at_once(*calls: Callable[[], str]) -> list[str]:
    results = [""] * len(calls)

    def run(number: int) -> None:
        results[number] = calls[number]()

    threads = [threading.Thread(target=run, args=[number], daemon=True) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


def eventually(true: Callable[[], object]) -> None:
    end = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_both_ways_at_once(pumped: Pumped) -> None:
    """An SSLSocket of the test itself is used by one thread at a time in each direction, so one way is echoed."""

    def echo() -> str:
        left = LARGE
        while left:
            piece = pumped.server.recv(1 << 16)
            pumped.server.sendall(piece)
            left -= len(piece)
        return ""

    sent, got, _ = at_once(lambda: send_noise(pumped.kernel, LARGE, 1), lambda: receive(pumped.kernel, LARGE), echo)
    assert sent == got


@pytest.mark.parametrize("small", [False, True])
def test_slow_readers_hold_back_and_lose_nothing(
    pumps: Pumps, authority: Path, version: ssl.TLSVersion, small: bool
) -> None:
    one = Pumped(pumps, authority, version, small)
    size = 600_000 if small else 6 << 20
    sent, got = at_once(lambda: send_noise(one.kernel, size, 2), lambda: receive(one.server, size, 0.002))
    assert sent == got
    sent, got = at_once(lambda: send_noise(one.server, size, 3), lambda: receive(one.kernel, size, 0.002))
    assert sent == got
    one.close()


def fill(sock: socket.socket) -> int:
    """Sends until that would wait for longer than a moment; how much went."""
    sock.settimeout(0.5)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while True:
            sent += sock.send(bytes(16384))
    sock.settimeout(SOON)
    return sent


def test_a_reader_that_reads_nothing_costs_no_memory_and_stops_the_sender(pumped: Pumped) -> None:
    assert fill(pumped.kernel) < 64 << 20  # the bytes that TCP takes, on both sides
    assert pumped.pump._up.full or len(pumped.pump._up.waiting) <= BUFFER


def test_a_direction_that_is_full_does_not_stop_the_other(pumped: Pumped) -> None:
    fill(pumped.kernel)
    sent, got = at_once(lambda: send_noise(pumped.server, 1 << 20, 4), lambda: receive(pumped.kernel, 1 << 20))
    assert sent == got


def test_others_go_on_while_one_is_full(pumps: Pumps, authority: Path, version: ssl.TLSVersion) -> None:
    stuck, free = (Pumped(pumps, authority, version) for _ in range(2))
    fill(stuck.kernel)
    sent, got = at_once(lambda: send_noise(free.kernel, 1 << 20, 5), lambda: receive(free.server, 1 << 20))
    assert sent == got
    stuck.close()
    free.close()


def test_a_server_that_closes_ends_the_kernels_connection_after_its_last_answers(pumped: Pumped) -> None:
    pumped.server.sendall(b"answer" * 1000)
    pumped.server.shutdown(socket.SHUT_RDWR)
    assert receive(pumped.kernel, 6000)
    assert pumped.kernel.recv(1) == b""
    with pytest.raises(BrokenPipeError):
        pumped.kernel.send(REQUEST)
    eventually(lambda: pumped.pump.over)
    assert pumped.said == CLOSED


def test_a_server_that_resets_ends_the_kernels_connection(pumped: Pumped) -> None:
    pumped.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pumped.server.close()
    assert pumped.kernel.recv(1) == b""
    eventually(lambda: pumped.pump.over)
    assert pumped.said == CLOSED


@pytest.mark.parametrize("record", [b"\x15\x03\x03\x00\x02\x02\x28", b"\x17\x03\x03\x00\x20" + bytes(32), b"junk" * 9])
def test_a_record_that_is_no_good_ends_the_kernels_connection(pumped: Pumped, record: bytes) -> None:
    """An alert in the clear, a record of other keys, no TLS at all; before them something good."""
    pumped.server.sendall(b"good")
    os.write(pumped.server.fileno(), record)
    assert pumped.kernel.recv(100) == b"good"
    assert pumped.kernel.recv(1) == b""
    eventually(lambda: pumped.pump.over)
    assert pumped.said


def test_a_server_that_is_lost_while_the_kernel_is_busy_sending(pumped: Pumped) -> None:
    fill(pumped.kernel)
    pumped.server.close()
    eventually(lambda: pumped.pump.over)
    assert pumped.said == CLOSED


def test_disconnect_is_carried_and_then_close_notify(pumped: Pumped) -> None:
    """All that came before it, too, though the kernel's end is closed at once."""
    pumped.kernel.sendall(bytes(150_000) + DISCONNECT)
    pumped.kernel.close()
    received = b""
    pumped.server.suppress_ragged_eofs = False  # type: ignore[attr-defined]  # an end without close_notify would be an error
    while piece := pumped.server.recv(1 << 16):
        received += piece
    assert received == bytes(150_000) + DISCONNECT
    pumped.server.close()
    eventually(lambda: pumped.pump.over)
    assert not pumped.said


def test_a_server_that_reads_late_gets_all_before_the_disconnect(pumped: Pumped) -> None:
    sent = fill(pumped.kernel)
    pumped.kernel.setblocking(True)

    def disconnect() -> None:
        pumped.kernel.sendall(DISCONNECT)
        pumped.kernel.close()

    thread = threading.Thread(target=disconnect)
    thread.start()
    receive(pumped.server, sent)
    assert pumped.server.recv(100) == DISCONNECT
    thread.join()


def test_an_end_without_disconnect_is_a_reset(pumped: Pumped) -> None:
    """Data in flight is from another time: none of it may arrive later than data of the next connection."""
    fill(pumped.kernel)
    pumped.kernel.shutdown(socket.SHUT_RDWR)
    eventually(lambda: pumped.pump.over)
    with pytest.raises(ConnectionResetError):
        while os.read(pumped.server.fileno(), 1 << 16):
            pass


def _look(pump: Pump, over: queue.SimpleQueue[bool]) -> None:
    over.put(pump.over)


def test_call_sees_what_ended_before_it(pumps: Pumps, authority: Path, version: ssl.TLSVersion) -> None:
    for _ in range(20):
        one = Pumped(pumps, authority, version)
        one.kernel.sendall(REQUEST)
        one.kernel.shutdown(socket.SHUT_RDWR)
        over = queue.SimpleQueue[bool]()
        pumps.call(functools.partial(_look, one.pump, over))
        assert over.get(timeout=SOON)
        one.close()


def test_a_server_that_does_not_take_the_goodbye_is_left(pumped: Pumped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbdattach.relay.pump.GOODBYE_SECONDS", 0.3)
    pumped.kernel.sendall(DISCONNECT)
    pumped.kernel.close()
    eventually(lambda: pumped.pump.over)


def test_an_idle_connection_costs_no_time(pumped: Pumped) -> None:
    pumped.kernel.sendall(REQUEST)
    receive(pumped.server, len(REQUEST))
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_a_full_direction_costs_no_time_while_it_waits(pumped: Pumped) -> None:
    fill(pumped.kernel)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


class ByHand:
    """Takes pumps, and leaves it to the test to move them, in this thread."""

    def add(self, pump: Pump) -> None:
        pump.step()


@pytest.mark.parametrize("reset", [True, False])
def test_the_end_of_one_connection_is_none_of_another(authority: Path, version: ssl.TLSVersion, reset: bool) -> None:
    """Python leaves the error of a send in a queue. OpenSSL finds it at the thread's next read of any connection."""
    by_hand = cast(Pumps, ByHand())
    living, ended = Pumped(by_hand, authority, version), Pumped(by_hand, authority, version)
    ended.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))
    ended.server.close()
    for _ in range(2):  # data sent into a closed connection causes the reset
        with contextlib.suppress(BrokenPipeError):
            ended.kernel.sendall(REQUEST)
        ended.pump.kernel_is_ready(select.POLLIN)
        ended.pump.step()
    eventually(lambda: ended.pump.step() or ended.pump.lost)
    assert ended.said == CLOSED
    for _ in range(3):
        living.kernel.sendall(REQUEST)
        living.pump.kernel_is_ready(select.POLLIN)
        living.pump.server_is_ready()
        living.pump.step()
        assert living.said == []
        assert living.server.recv(len(REQUEST)) == REQUEST
    living.pump.abort()


class Flood:
    """A server that always has a record."""

    family = socket.AF_INET

    def recv_into(self, room: memoryview) -> int:
        return min(len(room), 1 << 14)

    def pending(self) -> int:
        return 1

    def __getattr__(self, _: str) -> Callable[..., int]:
        return lambda *_: 3  # of no matter here


def test_a_server_that_sends_on_after_our_goodbye_does_not_keep_the_loop() -> None:
    """Nothing of it goes to the kernel, so no full buffer ends it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pump = Pump(ours, cast(ssl.SSLSocket, Flood()), print)
        theirs.sendall(DISCONNECT)
        theirs.shutdown(socket.SHUT_RDWR)
        pump.kernel_is_ready(select.POLLIN | select.POLLHUP)
        assert pump.seconds_left is not None
        assert pump.step()  # returns, and may have more to do
