# SPDX-License-Identifier: GPL-2.0-or-later
"""Silence ends a connection; slowness never does."""

from __future__ import annotations

import errno
import math
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from far import cut_link, lose_large_packets
from load import write_direct
from servers import free_port, nbdkit
from test_restart import network, place  # noqa: F401 - a fixture
from tool import attached, connect, eventually, nbd, nbd_ok, shell, sparse_file

from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel

pytestmark = pytest.mark.any_monitor

MIB = 1 << 20
FIRST = Kernel(Device(0))
DEAD_PEER = 3
# More than the buffers of both ends hold.
WRITES = 24


def clients(port: int) -> list[str]:
    """The ports at this end of all living connections to that one."""
    lines = shell(f"ss -Htn state established dport = :{port}").splitlines()
    return [line.split()[2].rpartition(":")[2] for line in lines]


def write(number: int, failures: list[OSError]) -> None:
    try:
        write_direct("/dev/nbd0", number * MIB, bytes(MIB))
    except OSError as error:
        failures.append(error)


@pytest.mark.essential
@pytest.mark.parametrize(
    "backend", [pytest.param("netlink", marks=pytest.mark.netlink), pytest.param("ioctl", marks=pytest.mark.ioctl)]
)
def test_a_server_at_one_slow_write_is_not_lost_and_not_asked_a_second_time(tmp_path: Path, backend: str) -> None:
    """It reads nothing meanwhile, so its window is closed for longer than --dead-peer; a second connection would send
    the requests again, and the server's late execution of the first ones then overwrites newer data.
    """
    slow, failures = tmp_path / "slow", list[OSError]()
    pwrite = f"if [ -e {slow} ]; then rm {slow}; sleep {6 * DEAD_PEER}; fi; cat >/dev/null"
    script = ("get_size=echo 64M", "pread=head -c $3 /dev/zero", f"pwrite={pwrite}", "can_write=exit 0")
    with (
        nbdkit("--threads=1", "eval", *script) as server,
        attached(server.uri, "nbd0", dead_peer=DEAD_PEER, backend=backend),
    ):
        port = int(server.place[1])
        before = clients(port)
        slow.touch()
        threads = [threading.Thread(target=write, args=[number, failures]) for number in range(WRITES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert failures == []
        assert (clients(port), len(before)) == (before, 1)


def errors_of_a_write(within: float = 60) -> list[int | None]:
    """The errors within so many seconds; then the device is detached, which would make it fail, too."""
    failures: list[OSError] = []
    writer = threading.Thread(target=write, args=[0, failures])
    writer.start()
    writer.join(within)
    failed = [failure.errno for failure in failures]
    nbd_ok("disconnect", "--force", "nbd0")
    return failed


@pytest.mark.netlink
@pytest.mark.parametrize(
    ("on_loss", "more"),
    [
        (5, {}),
        (5, {"connections": 2, "io_timeout": 3}),
        pytest.param(0, {"connections": 2, "io_timeout": 15}, marks=[pytest.mark.rare, pytest.mark.timeout(400)]),
        pytest.param(5, {"connections": 2, "io_timeout": 40}, marks=[pytest.mark.rare, pytest.mark.timeout(400)]),
    ],
    ids=["one", "two", "two that may be slow, and fail at once", "two that may be slower"],
)
def test_requests_fail_after_on_loss_though_connections_come_to_be_over_which_nothing_gets_through(
    tmp_path: Path,
    network: str,  # noqa: F811
    on_loss: int,
    more: dict[str, int],
) -> None:
    image = sparse_file(tmp_path / "image", 16 * MIB)
    with nbdkit("file", f"file={image}", address="10.9.0.2", namespace=network) as server:
        lose_large_packets()
        connect(server.uri, "nbd0", on_loss=on_loss, **more)
        assert errors_of_a_write(within=60 + 6 * more.get("io_timeout", 0)) == [errno.EIO]


class Mortal:
    """A server that comes back at once, and dies of each write."""

    def __init__(self) -> None:
        self.port = free_port()
        self._over = False
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        script = ("get_size=echo 1M", "pread=head -c $3 /dev/zero", "pwrite=kill -9 $PPID", "can_write=exit 0")
        while not self._over:
            with nbdkit("eval", *script, port=self.port) as server:
                while not self._over and not server.has_ended:
                    time.sleep(0.02)

    def __enter__(self) -> Mortal:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()


@pytest.mark.netlink
def test_a_request_that_its_server_dies_of_fails_after_on_loss() -> None:
    with Mortal() as server:
        nbd_ok("connect", f"127.0.0.1:{server.port}", "nbd0", "--on-loss", "wait:5", "--retry-for", "30")
        assert errors_of_a_write() == [errno.EIO]


@pytest.mark.ioctl
def test_a_cut_link_ends_an_attachment_by_ioctl_within_dead_peer(tmp_path: Path, network: str) -> None:  # noqa: F811
    image = sparse_file(tmp_path / "image", 16 * MIB)
    with nbdkit("file", f"file={image}", address="10.9.0.2", namespace=network) as server:
        connect(server.uri, "nbd0", backend="ioctl", dead_peer=DEAD_PEER)
        cut_link()
        failures: list[OSError] = []
        writer = threading.Thread(target=write, args=[0, failures])
        writer.start()
        writer.join(60)
        assert len(failures) == 1
        eventually(lambda: not FIRST.attached)
        nbd("disconnect", "nbd0")  # tidies up the leftovers of the worker at a device that was in use at the end


# Writes 4 MiB at a time, past all caches: several requests, which this process sends itself. It gets signals meanwhile.
WRITER = """
import mmap, os, signal
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
node, noise = os.open("/dev/nbd0", os.O_WRONLY | os.O_DIRECT), mmap.mmap(-1, 4 << 20)
for number in range(40):
    assert os.pwritev(node, [noise], number % 3 << 22) == len(noise)
    print(number, flush=True)
signal.setitimer(signal.ITIMER_REAL, 0)
"""


@pytest.mark.netlink
def test_a_write_of_a_program_that_gets_signals_does_not_fail_when_the_server_dies(tmp_path: Path) -> None:
    """Since Linux 6.13 (`kernel_socket.make_room`). The signal comes while it sends to a server that reads nothing."""
    there = place(tmp_path, "image", "unix")  # has the smallest buffers
    with ExitStack() as servers:
        server = servers.enter_context(there.serve())
        with attached(server.uri, "nbd0", on_loss=math.inf):
            command = [sys.executable, "-c", WRITER]
            writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert writer.stdout
            for _ in range(3):
                writer.stdout.readline()
                server.pause()
                time.sleep(1.5)
                server.kill()
                server = servers.enter_context(there.serve())
            out, errors = writer.communicate(timeout=120)
            assert (writer.returncode, errors) == (0, ""), out
