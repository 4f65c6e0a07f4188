# SPDX-License-Identifier: GPL-2.0-or-later
"""The harness itself: a server is found ready without a client, and gone with all of its processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from listening import Place, clients, listens
from servers import nbd_server, nbdkit

SELF = os.getpid()


@pytest.fixture(params=["tcp", "tcp6", "unix"])
def bound(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    if request.param == "unix":
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(tmp_path / "a socket"))
    elif request.param == "tcp6":
        made = socket.socket(socket.AF_INET6)
        try:
            made.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
    else:
        made = socket.socket()
        made.bind(("127.0.0.1", 0))
    with made:
        yield made


def place(made: socket.socket) -> Place:
    name = made.getsockname()
    return name if isinstance(name, str) else name[:2]


def test_a_socket_that_is_bound_only_takes_no_connections(bound: socket.socket) -> None:
    assert not listens(SELF, place(bound))
    bound.listen()
    assert listens(SELF, place(bound))


def test_connections_are_counted_until_they_end(bound: socket.socket) -> None:
    bound.listen()
    with ExitStack() as stack:
        for count in range(3):
            assert clients(place(bound)) == count
            stack.enter_context(socket.socket(bound.family)).connect(bound.getsockname())
            stack.enter_context(bound.accept()[0])
    assert clients(place(bound)) == 0


def test_the_socket_of_another_process_is_not_the_servers(bound: socket.socket) -> None:
    bound.listen()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert not listens(other.pid, place(bound))
    assert not listens(other.pid, place(bound))


def test_a_server_that_is_ready_has_heard_of_no_client() -> None:
    with nbdkit("--verbose", "memory", "1M") as server:
        assert "accepted connection" not in server.log


def test_a_daemon_that_leads_no_group_is_killed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nbd-server 3.27 forks once more after setsid; here the one of this machine is made to."""
    program = tmp_path / "nbd-server"
    program.write_text(f"""#!{sys.executable}
import os, socket, sys
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
port = next(line.split("= ")[1] for line in open(sys.argv[2]) if line.startswith("port"))
made = socket.create_server(("127.0.0.1", int(port)))
if not os.fork():
    with open(sys.argv[4], "w") as file:
        file.write(f"{{os.getpid()}}\\n")
while True:
    made.accept()
""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with nbd_server({}) as server:
        assert os.getpgid(server.pid) != server.pid
    assert not listens(server.pid, server.place)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.tcp)
