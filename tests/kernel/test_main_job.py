# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach, write, compare on the server's side, detach: with each server, over TCP and Unix sockets."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
from listening import clients
from servers import Server, nbd_server, nbdkit, qemu_nbd
from tool import attached, digest_of, fill_with_noise, nbd, nbd_ok, partitioned_image, shell, sparse_file

from nbdattach.device import Device
from nbdattach.kernel import sysfs
from nbdattach.kernel.sysfs import Kernel

pytestmark = pytest.mark.any_monitor

MIB = 1 << 20
FIRST = Kernel(Device(0))


def start(kind: str, image: Path, transport: str) -> AbstractContextManager[Server]:
    unix = f"{image}.sock" if transport == "unix" else ""
    if kind == "nbdkit":
        return nbdkit("file", f"file={image}", unix=unix)
    if kind == "qemu-nbd":
        return qemu_nbd(str(image), unix=unix)
    return nbd_server({"disk": str(image)}, unix=unix)


@pytest.mark.parametrize(
    ("kind", "transport"),
    [
        pytest.param("nbdkit", "tcp", marks=pytest.mark.essential),
        ("nbdkit", "unix"),
        ("qemu-nbd", "tcp"),
        pytest.param("qemu-nbd", "unix", marks=pytest.mark.essential),
        pytest.param("nbd-server", "tcp", marks=pytest.mark.essential),
        ("nbd-server", "unix"),
    ],
)
def test_what_was_written_is_on_the_server_after_disconnect(tmp_path: Path, kind: str, transport: str) -> None:
    image = sparse_file(tmp_path / "image", 16 * MIB)
    with start(kind, image, transport) as server:
        uri = server.export("disk" if kind == "nbd-server" else "")
        assert nbd_ok("connect", uri, "/dev/nbd0") == "/dev/nbd0"
        written = fill_with_noise("/dev/nbd0", 16)
        assert nbd_ok("disconnect", "/dev/nbd0") == ""
        assert digest_of(image) == written
    assert not FIRST.attached and not FIRST.size


SIZES = {
    "1TiB": 2**40,
    "16TiB": 2**44,
    "4EiB": 2**62,
    "8EiB-512": 2**63 - 512,
    "1TiB+512": 2**40 + 512,
    "2G-1 blocks": 512 * (2**31 - 1),
    "2G blocks": 512 * 2**31,
    "one block": 512,
}
ESSENTIAL_SIZES = ("8EiB-512", "1TiB+512", "2G blocks", "one block")


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(size, id=name, marks=pytest.mark.essential if name in ESSENTIAL_SIZES else ())
        for name, size in SIZES.items()
    ],
)
def test_exact_size(size: int) -> None:
    with nbdkit("eval", f"get_size=echo {size}", "pread=head -c $3 /dev/zero") as server, attached(server.uri):
        assert FIRST.size == size
        with open("/dev/nbd0", "rb") as device:
            assert device.seek(0, os.SEEK_END) == size


def test_read_back_through_the_page_cache_and_direct(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(8 * MIB))
    with nbdkit("file", f"file={image}") as server, attached(server.uri):
        assert shell("dd if=/dev/nbd0 bs=1M status=none | sha256sum").split()[0] == digest_of(image)
        assert shell("dd if=/dev/nbd0 bs=1M iflag=direct status=none | sha256sum").split()[0] == digest_of(image)


@pytest.mark.essential
def test_a_file_system_lives_on_it(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "image", 64 * MIB)
    with nbdkit("file", f"file={image}") as server:
        with attached(server.uri):
            shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt && echo hello > /mnt/file && umount /mnt")
        with attached(server.uri):
            assert shell("mount /dev/nbd0 /mnt && cat /mnt/file && umount /mnt") == "hello\n"
    shell(f"e2fsck -fn {image}")


def test_read_only_by_option_and_by_the_server() -> None:
    with nbdkit("memory", "1M") as server, attached(server.uri, read_only=True) as attachment:
        assert attachment.status().read_only
        assert nbd("status", "--json").json()[0]["read_only"] is True
        with pytest.raises(PermissionError), open("/dev/nbd0", "r+b", buffering=0) as device:
            device.write(bytes(512))
    with nbdkit("-r", "memory", "1M") as server, attached(server.uri) as attachment:
        assert attachment.status().read_only
    with nbdkit("memory", "1M") as server, attached(server.uri) as attachment:
        assert not attachment.status().read_only


@pytest.mark.essential
def test_what_another_tool_left_read_only_can_be_written(tmp_path: Path) -> None:
    """BLKROSET, which nbd-client uses too, outlives the attachment that it was meant for."""
    image = sparse_file(tmp_path / "image", MIB)
    shell("blockdev --setro /dev/nbd0")
    with nbdkit("file", f"file={image}") as server:
        with attached(server.uri) as attachment:
            assert not attachment.status().read_only
            written = fill_with_noise("/dev/nbd0", 1)
        assert digest_of(image) == written


@pytest.mark.essential
def test_several_connections_where_the_server_allows_them(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "image", 16 * MIB)
    with nbdkit("file", f"file={image}") as server:
        with attached(server.uri, connections=4) as attachment:
            assert attachment.status().connections == 4
            assert clients(server.place) == 4
            written = fill_with_noise("/dev/nbd0", 16)
        assert digest_of(image) == written


def test_one_connection_where_the_server_allows_one(tmp_path: Path) -> None:
    with nbdkit("--filter=multi-conn", "memory", "1M", "multi-conn-mode=disable") as server:
        done = nbd("connect", "-C", "4", "--io-timeout", "60", server.uri, "/dev/nbd0")
        assert done.code == 0
        assert "the server allows only one connection" in done.err
        assert nbd("status", "--json", "nbd0").json()[0]["connections"] == 1
        nbd_ok("disconnect", "nbd0")


@pytest.mark.netlink
def test_a_slow_server_is_served_though_several_connections_were_asked_for() -> None:
    """With several, and no time that is the user's, the driver gives a slow request up, and again and again."""
    with nbdkit("--filter=delay", "memory", "1M", "delay-write=8") as server:
        done = nbd("connect", "-C", "2", server.uri, "/dev/nbd0")
        assert done.code == 0
        assert "only one connection is made" in done.err
        assert nbd("status", "--json", "nbd0").json()[0]["connections"] == 1
        shell("dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 oflag=direct status=none")
        assert "Connection timed out" not in shell("dmesg | tail -20")
        nbd_ok("disconnect", "nbd0")


def test_no_handshake_goes_straight_into_transmission() -> None:
    """A server that speaks only the transmission phase: nbdkit's, after a proxy has eaten its greeting."""
    with nbdkit("--oldstyle", "memory", "4M") as server, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            upstream = socket.create_connection(server.tcp)
            greeting = b""
            while len(greeting) < 152:
                greeting += upstream.recv(152 - len(greeting))
            threading.Thread(target=pump, args=(client, upstream), daemon=True).start()
            pump(upstream, client)

        threading.Thread(target=serve, daemon=True).start()
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        nbd_ok("connect", "--no-handshake", "--size", str(4 * MIB), target, "nbd0")
        written = fill_with_noise("/dev/nbd0", 4)
        assert shell("dd if=/dev/nbd0 iflag=direct bs=1M status=none | sha256sum").split()[0] == written
        nbd_ok("disconnect", "nbd0")


def pump(source: socket.socket, sink: socket.socket) -> None:
    while data := source.recv(1 << 16):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)


@pytest.mark.essential
def test_partitions_are_there_when_connect_returns(tmp_path: Path) -> None:
    image = partitioned_image(tmp_path / "image")
    with nbdkit("file", f"file={image}") as server:
        for _ in range(5):
            with attached(server.uri):
                assert FIRST.partitions == ["nbd0p1", "nbd0p2"]
                os.close(os.open("/dev/nbd0p1", os.O_RDONLY))
                assert FIRST.partitions == ["nbd0p1", "nbd0p2"]
            assert FIRST.partitions == []


def test_blkid_looks_at_the_new_disk_at_once(tmp_path: Path) -> None:
    """It takes what it read in the last 2 s for what is there, unless the time of the node is later."""
    images = [sparse_file(tmp_path / label, 1 << 20) for label in ("first", "second")]
    for image in images:
        shell(f"mkfs.ext4 -q -O ^has_journal -L {image.name} {image}")
    for image in images:
        with nbdkit("file", f"file={image}") as server, attached(server.uri):
            assert shell("blkid -o value -s LABEL /dev/nbd0").strip() == image.name


def test_without_device_a_free_one_is_taken() -> None:
    with nbdkit("memory", "1M") as server:
        names = [nbd_ok("connect", "--shared", "--tag", str(number), server.uri) for number in range(3)]
        assert names == ["/dev/nbd0", "/dev/nbd1", "/dev/nbd2"]
        assert nbd("disconnect", *names).code == 0


def test_connect_again_is_a_success_that_says_so() -> None:
    with nbdkit("memory", "1M") as server, attached(server.uri):
        for arguments in ([server.uri], [server.uri, "nbd0"]):
            done = nbd("connect", *arguments)
            assert (done.code, done.out) == (0, "/dev/nbd0\n")
            assert "already attached" in done.err


def test_connect_again_with_other_options_is_in_use() -> None:
    with nbdkit("memory", "1M") as server, nbdkit("memory", "1M") as other, attached(server.uri, tag="a"):
        for options in (
            [other.uri],
            [server.uri, "-r"],
            [server.uri, "--expect-size", "5"],
            [server.uri, "-b", "4096"],
        ):
            done = nbd("connect", "--tag", "a", *options)
            assert (done.code, done.out) == (7, ""), done
            assert server.uri in done.err


@pytest.mark.ioctl
def test_all_devices_in_use_is_said() -> None:
    with nbdkit("memory", "1M") as server, ExitStack() as stack:
        count = len(sysfs.devices())
        for number in range(count):
            stack.enter_context(attached(server.uri, None, tag=str(number), connections=1))
        done = nbd("connect", "--shared", "--tag", "one more", server.uri)
        assert done.code == 7
        assert f"all {count} devices are in use" in done.err
