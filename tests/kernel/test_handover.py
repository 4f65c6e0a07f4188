# SPDX-License-Identifier: GPL-2.0-or-later
"""A new connection in the place of one that serves: by `reconnect`, and without an order."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from load import BLOCK, Load, write_direct
from servers import nbdkit
from test_restart import MIB, nothing_goes_wrong, place, state_of
from tool import ALL, attached, eventually, nbd, nbd_ok, shell, sparse_file

from nbdattach.attached import state, status
from nbdattach.device import Device

pytestmark = [pytest.mark.netlink, pytest.mark.any_monitor]


# -- reconnect ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connections", [1, 4])
def test_reconnect_under_load_to_another_server_of_the_same_data(tmp_path: Path, connections: int) -> None:
    there = place(tmp_path, "image")
    # With several threads nbdkit 1.32 dies of an assertion (raw_send_socket) when a connection ends as it answers.
    with there.serve("--threads=1") as old, ExitStack() as servers:
        new = servers.enter_context(nbdkit("--threads=1", "file", f"file={there.image}", unix=f"{tmp_path}/other"))
        with attached(old.uri, "nbd0", connections=connections):
            load = Load("/dev/nbd0", writers=3)
            with nothing_goes_wrong(load, there.image):
                load.see_it_run()
                nbd_ok("reconnect", "nbd0")
                load.see_it_run()
                assert new.uri in nbd("reconnect", "/dev/nbd0", new.uri).err
                old.kill()
                load.see_it_run()
                assert status.status_of(Device(0)).target == new.uri
                # The old connections end meanwhile, so status shows "reconnecting" for a moment.
                eventually(lambda: state_of("nbd0") == "connected")


def test_reconnect_to_what_will_not_do_changes_nothing(tmp_path: Path) -> None:
    there = place(tmp_path, "image")
    with there.serve() as server, attached(server.uri, "nbd0"):
        load = Load("/dev/nbd0")
        with nothing_goes_wrong(load, there.image):
            load.see_it_run()
            with nbdkit("memory", "15M") as smaller:
                done = nbd("reconnect", "nbd0", smaller.uri)
            assert done.code == 4
            assert f"{15 * MIB} bytes now, {16 * MIB} were attached" in done.err
            done = nbd("reconnect", "nbd0", "127.0.0.1:1")
            assert done.code == 3
            assert "Connection refused" in done.err
            assert status.status_of(Device(0)).target == server.uri


def test_a_device_does_not_move_to_what_another_device_has_for_writing() -> None:
    with nbdkit("memory", "1M") as one, nbdkit("memory", "1M") as two:
        port = two.uri.rpartition(":")[2]
        with attached(one.uri, "nbd0"), attached(two.uri, "nbd1"):
            for name in (two.uri, f"localhost:{port}"):
                done = nbd("reconnect", "nbd0", name)
                line, hint = done.err.splitlines()
                assert (done.code, done.out) == (7, "")
                assert line.endswith(
                    ": attached read-write at /dev/nbd1 already; two file systems that write to one disk destroy it"
                )
                assert hint == "(nbdattach disconnect /dev/nbd1, or use --shared if its users know of each other)"
            assert status.status_of(Device(0)).target == one.uri
            nbd_ok("reconnect", "nbd1", two.uri)
            nbd_ok("reconnect", "--shared", "nbd0", two.uri)
            assert status.status_of(Device(0)).target == two.uri
            nbd_ok("reconnect", "nbd0", one.uri)
        with attached(one.uri, "nbd0", read_only=True), attached(two.uri, "nbd1"):
            nbd_ok("reconnect", "nbd0", two.uri)


@pytest.mark.skipif(not shutil.which("qemu-nbd"), reason="no qemu-nbd here")
def test_the_server_of_an_image_is_not_attached_by_its_socket(tmp_path: Path) -> None:
    """`status` shows it, and a second device would write to the same image."""
    image = sparse_file(tmp_path / "disk.raw", MIB)
    nbd_ok("connect", str(image), "nbd0")
    uri = nbd("status", "--json", "nbd0").json()[0]["target"]
    for order in (("connect", "--tag", "again", uri), ("connect", "--tag", "again", uri, "nbd1")):
        done = nbd(*order)
        assert (done.code, done.out) == (7, ""), done
        assert "attached read-write at /dev/nbd0 already" in done.err
    with nbdkit("memory", "1M") as other, attached(other.uri, "nbd1"):
        done = nbd("reconnect", "nbd1", uri)
        assert (done.code, "attached read-write at /dev/nbd0 already" in done.err) == (7, True), done
    nbd_ok("disconnect", "nbd0")


@pytest.fixture
def busy() -> Iterator[None]:
    """Keeps the machine busy, so that the driver is late to see connections end."""
    with ExitStack() as loops:
        for _ in range(3):
            loop = subprocess.Popen(["sh", "-c", "while :; do :; done"])
            loops.callback(loop.wait)
            loops.callback(loop.kill)
        yield


@pytest.mark.usefixtures("busy")
def test_what_reconnect_calls_connected_serves(tmp_path: Path) -> None:
    there = place(tmp_path, "image", "unix", mebibytes=1)
    with there.serve() as server, attached(server.uri, "nbd0"):
        for number in range(24 if ALL else 5):
            nbd_ok("reconnect", "nbd0")
            write_direct("/dev/nbd0", content=bytes([number]) * BLOCK)
            assert there.image.read_bytes()[:4096] == bytes([number]) * 4096


@contextlib.contextmanager
def without_space(folder: str) -> Iterator[None]:
    """New files cannot be written there, and existing ones stay."""
    shell(f"dd if=/dev/zero of={folder}/filler bs=4096 status=none || true")
    try:
        yield
    finally:
        os.unlink(f"{folder}/filler")


@pytest.fixture
def small_run() -> Iterator[None]:
    """/run/nbdattach is a small file system, which is soon full."""
    os.makedirs(state.RUN, exist_ok=True)
    shell(f"mount -t tmpfs -o size=128k,mode=0700 tmpfs {state.RUN}")
    yield
    shell(f"umount --lazy {state.RUN}")


@pytest.mark.usefixtures("small_run")
def test_nothing_moves_to_another_server_that_cannot_be_written_down(tmp_path: Path) -> None:
    """The next monitor would connect to the old server, and its data is old by then."""
    old, new = place(tmp_path, "old", mebibytes=1), place(tmp_path, "new", mebibytes=1)
    with old.serve() as server, new.serve() as other, attached(server.uri, "nbd0"):
        with without_space(state.RUN):
            done = nbd("reconnect", "nbd0", other.uri)
            assert done.code != 0 and "No space left on device" in done.err
            write_direct("/dev/nbd0", content=b"1" * BLOCK)
        assert (old.image.read_bytes()[:1], new.image.read_bytes()[:1]) == (b"1", b"\0")
        nbd_ok("reconnect", "nbd0", other.uri)
        write_direct("/dev/nbd0", content=b"2" * BLOCK)
        assert (old.image.read_bytes()[:1], new.image.read_bytes()[:1]) == (b"1", b"2")


# -- without an order --------------------------------------------------------------------------------------------------


def test_a_slow_server_gets_each_request_once_though_two_connections_were_wanted(tmp_path: Path) -> None:
    """If it has another connection, the driver takes a request of 3 seconds for a dead one, and sends it again."""
    log = tmp_path / "log"
    with nbdkit("--filter=log", "--filter=delay", "memory", "1M", f"logfile={log}", "delay-write=7") as server:
        nbd_ok("connect", "--connections", "2", server.uri, "nbd0")
        write_direct("/dev/nbd0")
        nbd_ok("disconnect", "nbd0")
    eventually(lambda: "Disconnect" in log.read_text())
    assert log.read_text().count(" Write ") == 1
