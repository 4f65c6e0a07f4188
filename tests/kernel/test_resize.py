# SPDX-License-Identifier: GPL-2.0-or-later
"""`resize`: the server's new size becomes the device's, but never while requests are under way.

From Linux 6.12 on the kernel waits for them with a lock that each message for each device needs.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from load import Load, write_direct
from servers import nbdkit
from test_restart import MIB, nothing_goes_wrong, place, trouble_of
from tool import attached, eventually, nbd, nbd_ok, shell

from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel

pytestmark = [pytest.mark.netlink, pytest.mark.any_monitor]
FIRST = Kernel(Device(0))
BLKPG = 0x1269
IOSTATS = Path("/sys/block/nbd0/queue/iostats")
# Linux 6.1 does not count a flush, and does not wait for it either.
WAITS = os.uname().release.split(".")[:2] != ["6", "1"]


@pytest.mark.parametrize("connections", [1, 2])
def test_resize(tmp_path: Path, connections: int) -> None:
    there = place(tmp_path, "image")
    with there.serve() as server, attached(server.uri, "nbd0", connections=connections):
        load = Load("/dev/nbd0")
        with nothing_goes_wrong(load, there.image):
            load.see_it_run()
            assert "as before" in nbd("resize", "nbd0").err
            os.truncate(there.image, 20 * MIB)
            assert FIRST.size == 16 * MIB
            assert f"{20 * MIB} bytes now" in nbd("resize", "nbd0").err
            assert FIRST.size == 20 * MIB
            load.see_it_run()
        with open("/dev/nbd0", "r+b", buffering=0) as device:
            device.seek(20 * MIB - 4096)
            assert device.write(b"x" * 4096) == 4096
            os.fsync(device.fileno())
        assert there.image.read_bytes().endswith(b"x" * 4096)
        os.truncate(there.image, 16 * MIB)
        assert f"{16 * MIB} bytes now" in nbd("resize", "nbd0").err
        assert FIRST.size == 16 * MIB


def test_a_size_that_changed_at_reconnect_is_taken_when_resize_says_so(tmp_path: Path) -> None:
    there = place(tmp_path, "image")
    with ExitStack() as servers:
        server = servers.enter_context(there.serve())
        with attached(server.uri, "nbd0"):
            load = Load("/dev/nbd0")
            with nothing_goes_wrong(load, there.image):
                load.see_it_run()
                server.kill()
                os.truncate(there.image, 20 * MIB)
                servers.enter_context(there.serve())
                eventually(lambda: f"{20 * MIB} bytes now" in trouble_of("nbd0"))
                assert FIRST.size == 16 * MIB
                nbd_ok("resize", "nbd0")
                load.see_it_run()
            assert FIRST.size == 20 * MIB


def test_a_mounted_device_does_not_shrink(tmp_path: Path) -> None:
    there = place(tmp_path, "image")
    with there.serve() as server, attached(server.uri, "nbd0"):
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        try:
            os.truncate(there.image, 8 * MIB)
            done = nbd("resize", "nbd0")
            assert (done.code, FIRST.size) == (7, 16 * MIB)
            assert "mounted at /mnt" in done.err
            assert "  mounted at /mnt: umount /mnt\n" in done.err
            os.truncate(there.image, 16 * MIB)
        finally:
            shell("umount /mnt")


def test_a_device_that_is_open_does_not_shrink(tmp_path: Path) -> None:
    """Data written beyond its new end would be lost, although no program has claimed it."""
    there = place(tmp_path, "image")
    with there.serve() as server, attached(server.uri, "nbd0"):
        os.truncate(there.image, 8 * MIB)
        with open("/dev/nbd0", "r+b", buffering=0):
            done = nbd("resize", "nbd0")
            assert (done.code, FIRST.size) == (7, 16 * MIB)
            assert f"open in process {os.getpid()} " in done.err
            assert f": kill {os.getpid()}\n" in done.err
        nbd_ok("resize", "nbd0")
        assert FIRST.size == 8 * MIB


# -- requests under way ------------------------------------------------------------------------------------------------


def write() -> None:
    write_direct("/dev/nbd0")


def write_to_a_partition() -> None:
    """Linux 6.12 counts it there only."""
    add_partition(Path("/dev/nbd0"), 1 << 20)
    write_direct("/dev/nbd0p1")


def add_partition(device: Path, size: int) -> None:
    """The first one, at the beginning: BLKPG of linux/blkpg.h, as Debian 13 has no addpart(8)."""
    add, number = 1, 1
    partition = ctypes.create_string_buffer(struct.pack("@qqi64s64s", 0, size, number, b"", b""))
    argument = struct.pack("@iiiP", add, 0, ctypes.sizeof(partition), ctypes.addressof(partition))
    with device.open("rb") as node:
        fcntl.ioctl(node, BLKPG, argument)


def flush() -> None:
    fd = os.open("/dev/nbd0", os.O_RDWR)
    os.fsync(fd)
    os.close(fd)


class Slow:
    """An nbdkit with a variable size, which begins to write or to flush and waits for a signal to continue."""

    def __init__(self, folder: Path) -> None:
        self._size, self._begun, self._gate = (folder / name for name in ("size", "begun", "gate"))
        self._size.write_text("64M")
        self._locked = self._gate.open("w")
        fcntl.flock(self._locked, fcntl.LOCK_EX)
        waits = f"touch {self._begun}; flock --shared {self._gate} true"
        self._script = [
            f"get_size=cat {self._size}", "pread=head -c $3 /dev/zero", "can_write=exit 0", "can_flush=exit 0",
            f"pwrite=cat >/dev/null; {waits}", f"flush={waits}", "thread_model=echo parallel",
        ]  # fmt: skip

    def serve(self, servers: ExitStack) -> str:
        return servers.enter_context(nbdkit("eval", *self._script)).uri

    def grow(self) -> None:
        self._size.write_text("128M")

    def begin(self, request: Callable[[], None]) -> threading.Thread:
        """Until it is under way."""
        thread = threading.Thread(target=request)
        thread.start()
        eventually(self._begun.exists)
        return thread

    def go_on(self) -> None:
        fcntl.flock(self._locked, fcntl.LOCK_UN)  # for the copies of this process, too, which have the file open


@pytest.mark.parametrize(
    "request_under_way", [write, write_to_a_partition, pytest.param(flush, marks=pytest.mark.essential)]
)
def test_no_size_is_sent_while_a_request_is_under_way_and_no_other_device_is_held_up(
    tmp_path: Path, request_under_way: Callable[[], None]
) -> None:
    slow = Slow(tmp_path)
    with ExitStack() as servers, attached(slow.serve(servers), "nbd0"):
        waiting = slow.begin(request_under_way)
        slow.grow()
        done = nbd("resize", "nbd0")
        if WAITS or request_under_way is not flush:
            assert done.code == 6
            assert "requests in flight for 10 s" in done.err and "the size has not changed" in done.err
            assert FIRST.size == 64 * MIB
        with nbdkit("memory", "1M") as other, attached(other.uri, "nbd1", tag="other"):
            assert waiting.is_alive()
        slow.go_on()
        waiting.join(60)
        assert not waiting.is_alive()
        nbd_ok("resize", "nbd0")
        assert FIRST.size == 128 * MIB


def test_no_size_is_sent_where_the_kernel_does_not_count_requests(tmp_path: Path) -> None:
    slow = Slow(tmp_path)
    with ExitStack() as servers, attached(slow.serve(servers), "nbd0"):
        IOSTATS.write_text("0")
        waiting = slow.begin(write)
        slow.grow()
        done = nbd("resize", "nbd0")
        assert (done.code, FIRST.size) == (6, 64 * MIB)
        slow.go_on()
        waiting.join(60)
        (hint,) = (line.strip()[1:-1] for line in done.err.splitlines() if "echo" in line)
        shell(hint)
        nbd_ok("resize", "nbd0")
        assert FIRST.size == 128 * MIB
