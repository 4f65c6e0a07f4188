# SPDX-License-Identifier: GPL-2.0-or-later
"""No data of a connection that was given up reaches the server later, after newer writes.

TCP keeps undelivered data, and sends it when the link is back, for a quarter of an hour.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from certificates import make
from far import ADDRESS, cut_link, heal_link
from leftovers import monitors
from load import BLOCK, write_direct
from servers import Server, nbdkit
from test_restart import network  # noqa: F401 - a fixture
from tool import attached, connect, eventually, nbd_ok, shell, sparse_file

from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel
from nbdattach.monitor import launch

pytestmark = pytest.mark.netlink  # both backends are in it
FIRST = Kernel(Device(0))
BLOCKS = 8


def write(number: int, content: bytes) -> None:
    write_direct("/dev/nbd0", number * BLOCK, content * BLOCK)


def write_old(number: int) -> None:
    with suppress(OSError):  # if the device is given up, too
        write(number, b"O")


def given_up() -> list[str]:
    """Open connections with data that the server does not have."""
    return shell(f"ss -tnH state fin-wait-1 dst {ADDRESS}").splitlines()


class Site:
    """A server behind a link, with old writes on their way to it when the link was cut."""

    def __init__(self, stack: ExitStack, folder: Path, far: str, tls: bool = False, *, blocks: int = BLOCKS) -> None:
        self.image = sparse_file(folder / "image", 1 << 20)
        words = ["--tls=require", f"--tls-certificates={make(folder / 'certificates')}"] if tls else []
        self._server: Server = stack.enter_context(
            nbdkit(*words, "--threads=1", "file", f"file={self.image}", address=ADDRESS, namespace=far)
        )
        self.uri = self._server.export(scheme="nbds" if tls else "nbd")
        self._blocks = blocks
        self._writes = [threading.Thread(target=write_old, args=[number]) for number in range(blocks)]

    def lose(self) -> None:
        write(0, b"A")
        cut_link()
        for each in self._writes:
            each.start()

    def write_new(self) -> None:
        for each in self._writes:
            each.join()
        for number in range(self._blocks):
            write(number, b"N")

    def holds_what_is_new(self) -> None:
        assert given_up() == []
        size = self._blocks * BLOCK
        assert self.image.read_bytes()[:size] == b"N" * size


def in_the_outage() -> None:
    """The monitor that has given it up is restarted; the next one holds no connection."""
    eventually(given_up)
    (monitor,) = monitors()
    os.kill(monitor, signal.SIGTERM)
    eventually(lambda: not monitors())
    launch.ensure_monitor()


@pytest.mark.parametrize(
    ("tls", "meanwhile"),
    [
        pytest.param(False, lambda: eventually(given_up), id="clear"),
        pytest.param(True, lambda: eventually(given_up), id="TLS by the kernel"),
        pytest.param(False, in_the_outage, id="another monitor"),
    ],
)
def test_no_old_write_comes_after_a_newer_one(
    tmp_path: Path,
    network: str,  # noqa: F811
    tls: bool,
    meanwhile: Callable[[], None],
) -> None:
    with ExitStack() as stack:
        site = Site(stack, tmp_path, network, tls)
        with attached(site.uri, "nbd0", **({"tls_verify": False} if tls else {})):
            site.lose()
            meanwhile()
            heal_link()
            site.write_new()
            site.holds_what_is_new()


def connections() -> set[str]:
    """The ports at this end of the connections."""
    return {line.split()[2] for line in shell(f"ss -tnH state established dst {ADDRESS}").splitlines()}


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "TLS by the kernel"])
@pytest.mark.parametrize("io_timeout", [1, 5])
def test_no_old_write_comes_after_one_over_another_connection(
    tmp_path: Path,
    network: str,  # noqa: F811
    tls: bool,
    io_timeout: int,
) -> None:
    """The driver sends a write that is older than --io-timeout again over the other one, which is well."""
    with ExitStack() as stack:
        site = Site(stack, tmp_path, network, tls, blocks=1)
        trust = {"tls_verify": False} if tls else {}
        with attached(site.uri, "nbd0", connections=2, io_timeout=io_timeout, on_loss=0, **trust):
            before = connections()
            site.lose()
            eventually(lambda: connections() < before)
            heal_link()
            site.write_new()
            site.holds_what_is_new()


def force() -> None:
    nbd_ok("disconnect", "--force", "nbd0")


def wait_for_the_worker() -> None:
    eventually(lambda: not FIRST.attached)
    nbd_ok("disconnect", "nbd0")


@pytest.mark.parametrize(("backend", "end"), [("netlink", force), ("ioctl", wait_for_the_worker)])
def test_no_old_write_comes_to_the_next_attachment(
    tmp_path: Path,
    network: str,  # noqa: F811
    backend: str,
    end: Callable[[], None],
) -> None:
    with ExitStack() as stack:
        site = Site(stack, tmp_path, network)
        connect(site.uri, "nbd0", backend=backend, dead_peer=3)
        site.lose()
        end()
        heal_link()
        with attached(site.uri, "nbd0", backend=backend):
            site.write_new()
            site.holds_what_is_new()
