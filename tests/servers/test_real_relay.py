# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay process against a real server: dialled, asked, killed; without a kernel."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import make
from servers import Server, nbdkit
from tls_server import record_server

from nbdattach.connection.client import Connection
from nbdattach.deadline import Deadline
from nbdattach.errors import NoConnection, TlsFailed
from nbdattach.host.procfs import alive
from nbdattach.protocol import transmission
from nbdattach.protocol.target import Target, parse_target, with_tls
from nbdattach.relay.dialer import Carrier


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server(authority: Path) -> Iterator[Server]:
    with nbdkit("--tls=require", f"--tls-certificates={authority}", "pattern", "1M") as running:
        yield running


@pytest.fixture
def target(server: Server, authority: Path) -> Target:
    return with_tls(parse_target(server.export(scheme="nbds")), ca=str(authority / "ca-cert.pem"))


def dial(carrier: Carrier, target: Target) -> Connection:
    return carrier.dial(target, 30, 60)


def answers(connection: Connection, target: Target) -> bool:
    data = connection.stream.run(transmission.read(target.uri, 4096, 16, 1))
    return data == (4096).to_bytes(8, "big") + (4104).to_bytes(8, "big")


def is_gone(pid: int) -> bool:
    deadline = Deadline(60)
    while alive(pid) and deadline.sleep(0.02):
        pass
    return not alive(pid)


def test_one_process_for_all_connections_and_it_ends_with_the_last(target: Target) -> None:
    carrier = Carrier("relay")
    made = [dial(carrier, target) for _ in range(3)]
    (pid,) = {connection.relay.pid for connection in made if connection.relay}
    assert made[0].export.size == 1 << 20
    assert made[0].tls and made[0].tls.transport == "relay"
    carrier.close()
    time.sleep(0.3)
    for connection in made:
        assert alive(pid)
        assert answers(connection, target)
        connection.stream.run(transmission.disconnect())
        connection.stream.close()
    assert is_gone(pid)


def test_it_ends_with_who_gave_the_orders_when_nothing_is_connected(target: Target) -> None:
    carrier = Carrier("relay")
    made = dial(carrier, target)
    assert made.relay
    made.stream.close()
    assert alive(made.relay.pid)
    again = dial(carrier, target)
    assert answers(again, target)
    again.stream.close()
    carrier.close()
    assert is_gone(made.relay.pid)


def test_another_takes_the_place_of_one_that_was_killed(target: Target) -> None:
    carrier = Carrier("relay")
    first = dial(carrier, target)
    assert first.relay
    os.kill(first.relay.pid, signal.SIGKILL)
    assert is_gone(first.relay.pid)
    assert first.stream.sock.recv(1) == b""
    second = dial(carrier, target)
    assert second.relay and second.relay.pid != first.relay.pid
    assert answers(second, target)
    second.stream.close()
    carrier.close()


def test_one_that_is_stuck_is_killed_by_a_burial(target: Target) -> None:
    carrier = Carrier("relay")
    made = dial(carrier, target)
    assert made.relay
    carrier.bury(Deadline(5))
    assert answers(made, target)  # a relay that lives is left alone
    os.kill(made.relay.pid, signal.SIGSTOP)
    carrier.bury(Deadline(0.2))
    assert is_gone(made.relay.pid)
    carrier.close()


def test_its_errors_are_ours(target: Target, server: Server, authority: Path) -> None:
    carrier = Carrier("relay")
    with pytest.raises(TlsFailed, match="not verified"):
        dial(carrier, with_tls(parse_target(server.export(scheme="nbds")), hostname="db1", ca=target.tls_ca))
    server.kill()
    with pytest.raises(NoConnection, match="cannot connect"):
        dial(carrier, target)
    carrier.close()


@contextlib.contextmanager
def mid_restart(tries: list[int]) -> Iterator[str]:
    """Says yes to TLS and is gone, each time; `tries` gets an element then."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listening.accept()
                with sock:
                    sock.sendall(b"NBDMAGICIHAVEOPT\0\3")
                    sock.recv(20, socket.MSG_WAITALL)
                    sock.sendall(bytes.fromhex("0003e889045565a9 00000005 00000001 00000000"))
                    sock.recv(4096)
                    tries.append(1)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"nbds://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(60)


def test_a_server_that_goes_in_the_middle_of_it_does_not_turn_the_kernel_into_a_relay(authority: Path) -> None:
    """Only if it does so again and again; and at once if the kernel has never done it."""
    tries: list[int] = []
    with mid_restart(tries) as uri:
        target = with_tls(parse_target(uri), ca=str(authority))
        for was_in_kernel, expected in ((True, [1, 1, 2, 2]), (False, [2, 2])):
            carrier = Carrier("auto", was_in_kernel=was_in_kernel)
            for count in expected:
                tries.clear()
                with pytest.raises(TlsFailed, match="closed the connection in the TLS handshake"):
                    carrier.dial(target, 30, 60)
                assert len(tries) == count
            carrier.close()


def test_new_keys_and_tickets_of_tls_1_3_do_not_disturb_it(authority: Path, tmp_path: Path) -> None:
    """Such records go to the relay and not to the kernel, which could not read them."""
    image, carrier = tmp_path / "image", Carrier("relay")
    image.write_bytes(os.urandom(1 << 20))
    with record_server(image, authority, newest=True) as server:
        target = with_tls(parse_target(server.uri), ca=str(authority))
        made = dial(carrier, target)
        assert made.tls and made.tls.version == "TLSv1.3"
        server.renew_keys = True
        for place in range(0, 1 << 20, 1 << 15):
            data = made.stream.run(transmission.read(target.uri, place, 1 << 15, place))
            assert data == image.read_bytes()[place : place + (1 << 15)]
        assert (server.connections, server.renewed) == (1, 32)
    made.stream.close()
    carrier.close()


def test_a_unix_socket_goes_to_the_relay_at_once(authority: Path, tmp_path: Path) -> None:
    with nbdkit("--tls=require", f"--tls-certificates={authority}", "pattern", "1M", unix=f"{tmp_path}/s") as server:
        there = with_tls(parse_target(server.export(scheme="nbds")), ca=str(authority), hostname="localhost")
        with pytest.raises(TlsFailed, match="the kernel does TLS only over TCP, not over a Unix socket"):
            dial(Carrier("kernel"), there)
        told: list[str] = []
        carrier = Carrier("auto")
        made = carrier.dial(there, 30, 10, told.append)
        assert answers(made, there)
        assert sum("connecting to" in line for line in told) == 1
        made.stream.close()
        carrier.close()


def test_its_steps_are_told(target: Target) -> None:
    told: list[str] = []
    carrier = Carrier("relay")
    carrier.dial(target, 30, 10, told.append).stream.close()
    assert any("NBD_OPT_STARTTLS" in line for line in told)
    assert told[-1].startswith("a relay, process ")
    carrier.close()
