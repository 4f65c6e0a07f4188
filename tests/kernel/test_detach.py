# SPDX-License-Identifier: GPL-2.0-or-later
"""The last moments of an attachment: no write is lost silently, no silent server blocks the command, nothing stays.

A detach that is refused because the device is used is in test_users.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from leftovers import workers
from servers import nbdkit
from tool import (
    connect,
    eventually,
    fill_with_noise,
    nbd,
    nbd_ok,
    partitioned_image,
    process_state,
    promised,
    shell,
    sparse_file,
)

import nbdattach
from nbdattach.device import Device
from nbdattach.host import open_files
from nbdattach.kernel import netlink
from nbdattach.kernel.node import Node
from nbdattach.kernel.sysfs import Kernel
from nbdattach.operations import disconnection, writes

pytestmark = pytest.mark.any_monitor

FIRST = Kernel(Device(0))
MIB = 1 << 20
BLOCK = 4096
LIBC = ctypes.CDLL(None)
LIBC.mmap.restype = ctypes.c_void_p
# Opens the device, writes one block, closes it, and reports if all of that has succeeded; then the next one.
WRITER = """
import os, sys, time
for block in range(int(sys.argv[1]), int(sys.argv[2])):
    try:
        fd = os.open("/dev/nbd0", os.O_WRONLY)
        os.pwrite(fd, block.to_bytes(4, "big") * 1024, block * 4096)
        os.close(fd)
    except OSError:
        break
    print(block, flush=True)
    time.sleep(0.05)
"""


def has_block(image: Path, block: int) -> bool:
    with image.open("rb") as file:
        file.seek(block * BLOCK)
        return file.read(4) == block.to_bytes(4, "big")


@pytest.mark.essential
def test_a_write_that_succeeds_after_the_last_look_is_on_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeeded: dict[int, bool] = {}

    def write_around(owner: object, name: str) -> None:
        call = getattr(owner, name)

        def around(*arguments: object) -> object:
            write()
            try:
                return call(*arguments)
            finally:
                write()

        monkeypatch.setattr(owner, name, around)

    def write() -> None:
        block = len(succeeded) + 1
        done = subprocess.run([sys.executable, "-c", WRITER, str(block), str(block + 1)], capture_output=True)
        succeeded[block] = done.returncode == 0 and done.stdout.split() == [b"%d" % block]

    write_around(disconnection, "sent")
    write_around(writes, "are_lost")
    write_around(Node, "clear")
    image = sparse_file(tmp_path / "image", 8 * MIB)
    with nbdkit("file", f"file={image}") as server:
        connect(server.uri, "nbd0")
        nbdattach.disconnect("nbd0")
    assert len(succeeded) == 6
    assert not [block for block, success in succeeded.items() if success and not has_block(image, block)]


def test_a_write_that_no_look_can_see_is_said_to_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may change memory that it has mapped, in the moment before the connection ends.

    As if it were in another pid namespace: its mappings cannot be seen then.
    """
    send = disconnection.sent
    monkeypatch.setattr(open_files, "openers", lambda *_: [])
    with nbdkit("memory", "1M") as server:
        connect(server.uri, "nbd0")
        memory = mapped("/dev/nbd0")

        def write_and_send(farewell: netlink.Farewell | None) -> bool:
            ctypes.memset(memory, 1, BLOCK)
            LIBC.munmap(ctypes.c_void_p(memory), BLOCK)
            return send(farewell)

        monkeypatch.setattr(disconnection, "sent", write_and_send)
        with pytest.raises(nbdattach.KernelRefused, match="detached, but the last writes of a program are lost"):
            nbdattach.disconnect("nbd0")
        assert not FIRST.attached and not FIRST.size


def mapped(path: str) -> int:
    """The address of its first block, mapped shared and writable. No descriptor shows that this process uses it."""
    with open(path, "r+b", buffering=0) as device:
        shared = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED
        address = LIBC.mmap(None, ctypes.c_size_t(BLOCK), *shared, device.fileno(), ctypes.c_long(0))
    assert address not in (None, ctypes.c_void_p(-1).value)
    return int(address)


def test_a_detach_that_is_refused_at_the_last_look_leaves_a_device_that_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look, looks = writes.was_written, iter((False, True))
    monkeypatch.setattr(writes, "was_written", lambda node: look(node) or next(looks))
    with nbdkit("memory", "1M") as server:
        connect(server.uri, "nbd0")
        with pytest.raises(nbdattach.DeviceInUse, match="a program keeps writing to it"):
            nbdattach.disconnect("nbd0")
        assert FIRST.attached and not FIRST.read_only
        fill_with_noise("/dev/nbd0", 1)
        monkeypatch.undo()
        nbd_ok("disconnect", "nbd0")


def test_the_command_itself_never_opens_the_device_that_it_detaches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open may wait for the server without end, and then the command could not be killed."""
    open_, opened = os.open, []

    def watched(path: str, *arguments: int, **more: int) -> int:
        opened.append(path)
        return open_(path, *arguments, **more)

    with nbdkit("file", f"file={partitioned_image(tmp_path / 'image')}") as server:
        connect(server.uri, "nbd0")
        monkeypatch.setattr(os, "open", watched)
        nbdattach.disconnect("nbd0")
    assert opened and not [path for path in opened if str(path).startswith("/dev/nbd")]


@pytest.mark.netlink
@pytest.mark.parametrize("watched", [pytest.param("watched", marks=pytest.mark.essential), "unwatched"])
def test_a_reader_that_waits_for_a_dead_server_does_not_keep_force(watched: str) -> None:
    with nbdkit("memory", "8M") as server:
        nbd_ok("connect", *(["--no-reconnect"] if watched == "unwatched" else []), server.uri, "nbd0")
        server.kill()
        reader = subprocess.Popen("exec dd if=/dev/nbd0 of=/dev/null count=1 iflag=direct status=none", shell=True)
        eventually(lambda: process_state(reader.pid) == "D")
        done = nbd("disconnect", "--force", "nbd0", seconds=promised(60))
        assert (done.code, FIRST.attached, FIRST.size) == (0, False, 0), done
        assert reader.wait(60) != 0


def test_partitions_go_with_the_last_user_of_a_device_that_was_detached_by_force(tmp_path: Path) -> None:
    with nbdkit("file", f"file={partitioned_image(tmp_path / 'image')}") as server:
        connect(server.uri, "nbd0")
        shell("mkfs.ext4 -q /dev/nbd0p1 && mount /dev/nbd0p1 /mnt")
        for _ in range(2):
            assert nbd("disconnect", "--force", "nbd0").code == 7
        assert FIRST.partitions
        eventually(lambda: len(tidying()) == 1)
        shell("umount /mnt")
        eventually(lambda: not (tidying() or FIRST.partitions or FIRST.size))


def tidying() -> list[int]:
    """Processes that wait until a device is free."""
    return [pid for pid, line in workers() if "import tidy_main" in line]


@pytest.mark.ioctl
def test_a_write_that_succeeds_while_sigterm_detaches_is_on_the_server(tmp_path: Path) -> None:
    """The flushes take long, so many writes happen meanwhile."""
    image = sparse_file(tmp_path / "image", 8 * MIB)
    copy = f"dd of={image} bs=1M iflag=fullblock oflag=seek_bytes conv=notrunc status=none seek=$4"
    reads = f"pread=dd if={image} bs=1M iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none"
    answers = ["get_size=echo 8M", "can_write=exit 0", f"pwrite={copy}", reads, "can_flush=exit 0", "flush=sleep 1"]
    with nbdkit("eval", *answers) as server:
        connect(server.uri, "nbd0")
        program = [sys.executable, "-c", WRITER, "1", "2048"]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout and FIRST.pid
            said = writer.stdout.readline()
            os.kill(FIRST.pid, signal.SIGTERM)
            said += writer.stdout.read()
        eventually(lambda: not FIRST.attached)
    assert said and not [block for block in map(int, said.split()) if not has_block(image, block)]
    assert not FIRST.read_only
