# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors before anything is attached: exit code, one line, one hint, and the device untouched."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import free_port, nbdkit
from tool import BY_IOCTL, at_once, connect, eventually, nbd, nbd_ok, shell

import nbdattach
from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel

pytestmark = pytest.mark.any_monitor

FIRST = Kernel(Device(0))
NEWSTYLE = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
INFO_EXPORT = struct.pack(">QIIIHQH", 0x3E889045565A9, 7, 3, 12, 0, 1 << 20, 1)
ACK = struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0)


@contextlib.contextmanager
def says(data: bytes, hold: bool = False) -> Iterator[str]:
    """A server that sends these bytes to each client and then closes, or holds, the connection. Its target."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    client.sendall(data)
                    if hold:
                        held.append(client)
                    else:
                        client.shutdown(socket.SHUT_WR)
                        while client.recv(4096):
                            pass
                        client.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """No event of the device, no size, no attachment."""
    before = Path("/sys/kernel/uevent_seqnum").read_text()
    yield
    assert Path("/sys/kernel/uevent_seqnum").read_text() == before
    assert not FIRST.attached and not FIRST.size


def refused(code: int, *arguments: str) -> list[str]:
    with untouched():
        done = nbd("connect", *arguments)
    assert (done.code, done.out) == (code, "")
    lines = done.err.splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith("nbdattach")
    assert lines[1].startswith("(") and lines[1].endswith(")")
    return lines


def test_closed_port() -> None:
    port = free_port()
    assert refused(3, f"localhost:{port}", "/dev/nbd0") == [
        f"nbdattach: nbd://localhost:{port}: cannot connect: Connection refused",
        f"(is the server running, and does it listen on port {port}?)",
    ]


def test_unknown_name() -> None:
    with nbdkit("eval", "list_exports=echo NAMES; echo root; echo swap", "open=test $3 = root || exit 1",
                "get_size=echo 1M", "pread=head -c $3 /dev/zero") as server:  # fmt: skip
        lines = refused(4, server.export("disk"), "/dev/nbd0")
    assert server.export("disk") in lines[0]


def test_silent_server() -> None:
    with says(b"", hold=True) as target:
        lines = refused(3, "--connect-timeout", "1", target, "/dev/nbd0")
    assert lines[0].endswith(": no answer within 1 s (waiting for the server's greeting): the server may be full")


def test_notice_that_the_server_requires_tls_is_no_disk() -> None:
    with nbdkit("--filter=tls-fallback", "memory", "1G") as server:
        assert refused(5, server.export("disk"), "/dev/nbd0") == [
            f"nbdattach: {server.export('disk')}: the server requires TLS: "
            "without it, it shows a notice of 512 bytes in place of the export",
            f"(use --tls, or {server.export('disk', 'nbds')})",
        ]


def test_malformed_uri_and_dev_null() -> None:
    refused(2, "nbd://host:port/x", "/dev/nbd0")
    refused(2, "nbd://localhost/x?foo=1", "/dev/nbd0")
    assert refused(2, "localhost", "/dev/null") == [
        "nbdattach: '/dev/null': not an nbd device",
        "(a DEVICE is /dev/nbd0, nbd0, /dev/nbd1, ...)",
    ]


@pytest.mark.ioctl
def test_no_such_device() -> None:
    with nbdkit("memory", "1M") as server:
        lines = refused(6, server.uri, "/dev/nbd999")
    assert lines[0] == "nbdattach: /dev/nbd999: the kernel has no such device"


@pytest.mark.essential
def test_a_server_that_dies_at_every_byte_of_the_handshake() -> None:
    conversation = NEWSTYLE + INFO_EXPORT + ACK
    with untouched():
        for count in range(len(conversation)):
            with says(conversation[:count]) as target, pytest.raises(nbdattach.NbdattachError) as caught:
                connect(target, "/dev/nbd0", connect_timeout=10)
            assert caught.value.exit_code == 3, count
            assert "closed the connection" in str(caught.value)


def test_a_server_that_never_answers_reads_is_a_deadline() -> None:
    with nbdkit("--filter=delay", "memory", "1M", "rdelay=60") as server:
        done = nbd("connect", "--connect-timeout", "3", server.uri, "nbd0")
        assert done.code == 3
        assert "no answer within 3 s (the kernel reads the partition table)" in done.err
        eventually(lambda: not FIRST.attached)


def test_a_server_that_dies_right_after_the_handshake() -> None:
    with says(NEWSTYLE + INFO_EXPORT + ACK) as target:
        done = nbd("connect", target, "/dev/nbd0")
    assert done.code == 3, done
    assert not FIRST.attached and not FIRST.size


def test_an_export_whose_first_block_cannot_be_read_is_attached_and_said() -> None:
    with nbdkit("eval", "get_size=echo 1M", "pread=echo EIO bad sector >&2; exit 1") as server:
        done = nbd("connect", server.uri, "/dev/nbd0")
        assert (done.code, done.out) == (0, "/dev/nbd0\n")
        assert "the server cannot read the first block" in done.err
        nbd_ok("disconnect", "nbd0")


@pytest.mark.spoils
def test_a_device_of_another_tool_is_left_alone_shown_and_can_be_detached() -> None:
    with nbdkit("memory", "1M") as server:
        shell(f"nbd-client {BY_IOCTL} 127.0.0.1 {server.place[1]} /dev/nbd0")
        assert nbd("connect", server.uri, "/dev/nbd0").code == 7
        assert nbd_ok("connect", server.uri) == "/dev/nbd1"
        foreign, ours = nbd("status", "--json").json()
        assert (foreign["device"], foreign["target"], foreign["backend"], foreign["size"]) == (
            "/dev/nbd0", None, None, 1 << 20,
        )  # fmt: skip
        assert ours["target"] == server.uri
        assert nbd("disconnect", "nbd0", "nbd1").code == 0


@pytest.mark.spoils
def test_a_device_of_nbd_clients_netlink_is_shown_and_can_be_detached() -> None:
    with nbdkit("memory", "1M") as server:
        shell(f"nbd-client 127.0.0.1 {server.place[1]} /dev/nbd0")
        assert nbd("status", "--json").json()[0]["size"] == 1 << 20
        assert nbd("disconnect", "nbd0").code == 0


def test_status_of_an_idle_device() -> None:
    done = nbd("status", "nbd0")
    assert (done.code, done.out) == (8, "")
    assert nbd("status", "--json").json() == []


@pytest.mark.essential
def test_parallel_connects_without_device_get_different_devices() -> None:
    with nbdkit("memory", "1M") as server:
        ended = at_once(*(["connect", "--shared", "--tag", str(number), server.uri] for number in range(6)))
        assert [one.code for one in ended] == [0] * 6, ended
        names = {one.out.strip() for one in ended}
        assert names == {f"/dev/nbd{number}" for number in range(6)}
        nbd_ok("disconnect", *sorted(names))


def test_parallel_connects_of_the_same_export_give_one_device() -> None:
    with nbdkit("memory", "1M") as server:
        assert {one.out for one in at_once(*[["connect", server.uri]] * 4)} == {"/dev/nbd0\n"}
        assert len(nbd("status", "--json").json()) == 1
        nbd_ok("disconnect", "nbd0")


def test_an_export_is_attached_for_writing_at_one_device_only(tmp_path: Path) -> None:
    with nbdkit("memory", "1M") as server:
        nbd_ok("connect", server.uri, "nbd0")
        port = server.uri.rpartition(":")[2]
        for name in (server.uri, f"localhost:{port}"):
            done = nbd("connect", "--tag", "again", name)
            line, hint = done.err.splitlines()
            assert (done.code, done.out) == (7, "")
            assert line.endswith(
                ": attached read-write at /dev/nbd0 already; two file systems that write to one disk destroy it"
            )
            assert (
                hint
                == "(use /dev/nbd0, or attach it with --read-only, or with --shared if its users know of each other)"
            )
        assert nbd_ok("connect", "--tag", "again", "--read-only", server.uri) == "/dev/nbd1"
        assert nbd_ok("connect", "--tag", "third", "--shared", server.uri) == "/dev/nbd2"
        nbd_ok("disconnect", "nbd0", "nbd1", "nbd2")
        assert nbd_ok("connect", "--tag", "again", server.uri) == "/dev/nbd0"
        nbd_ok("disconnect", "nbd0")


def test_a_server_of_this_host_is_one_by_each_of_its_addresses() -> None:
    """nbdkit listens at all of them; a program may know any."""
    shell("ip addr add 10.9.8.7/32 dev lo")
    port = free_port()
    with nbdkit("memory", "1M", port=port, address="0.0.0.0"):
        nbd_ok("connect", f"127.0.0.1:{port}", "nbd0")
        done = nbd("connect", "--tag", "again", f"10.9.8.7:{port}")
        assert (done.code, "attached read-write at /dev/nbd0 already" in done.err) == (7, True), done
        nbd_ok("disconnect", "nbd0")
        names = ("localhost", "10.9.8.7", "127.0.0.1")
        ended = at_once(*(["connect", "--tag", name, f"{name}:{port}"] for name in names))
        assert sorted(one.code for one in ended) == [0, 7, 7]
        nbd_ok("disconnect", "--all")
    shell("ip addr del 10.9.8.7/32 dev lo")


def test_several_at_once_are_one_for_writing() -> None:
    with nbdkit("memory", "1M") as server:
        ended = at_once(*(["connect", "--tag", str(number), server.uri] for number in range(4)))
        assert sorted(one.code for one in ended) == [0, 7, 7, 7]
        nbd_ok("disconnect", "--all")


def test_a_device_that_the_server_makes_read_only_is_said_to_be_so() -> None:
    with nbdkit("-r", "memory", "1M") as server:
        done = nbd("connect", server.uri, "nbd0")
        said = f"nbdattach: {server.uri}: the server offers it read-only, and so is the device"
        assert (done.code, done.err.splitlines()) == (0, [said])
        nbd_ok("disconnect", "nbd0")
        done = nbd("connect", "--read-only", server.uri, "nbd0")
        assert (done.code, done.err) == (0, "")
        nbd_ok("disconnect", "nbd0")
        line, hint = refused(4, "--read-write", server.uri)
        assert line == f"nbdattach: {server.uri}: the server offers it read-only"
        assert hint == "(leave out --read-write to attach it so)"
        assert not Kernel(Device(0)).attached


def test_an_empty_device_or_tag_is_a_mistake_not_a_default() -> None:
    refused(2, "localhost", "")
    refused(2, "--tag", "", "localhost")


def test_the_module_is_loaded_when_it_is_missing() -> None:
    shell("modprobe -r nbd")
    with nbdkit("memory", "1M") as server:
        assert nbd_ok("connect", server.uri) == "/dev/nbd0"
        nbd_ok("disconnect", "nbd0")


def test_without_permission(tmp_path: Path) -> None:
    with nbdkit("memory", "1M") as server:
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c",
             "import sys; sys.path[:0] = sys.argv.pop(1).split(':'); from nbdattach.cli.main import main; main()",
             f"{Path(nbdattach.__file__).parent.parent}:{Path(pytest.__file__).parent.parent}",
             "connect", server.uri, "/dev/nbd0"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 6, done
        assert done.stderr.splitlines()[0] == "nbdattach: /run/nbdattach: no permission"


WITHOUT_PYROUTE2 = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "pyroute2" else found(name, *more)
from nbdattach.cli.main import main
main()
"""


def test_a_device_that_nobody_will_reconnect_is_said_to_be_one() -> None:
    with nbdkit("memory", "1M") as server:
        for backend, said in (("auto", True), ("ioctl", False)):
            words = ["connect", "--backend", backend, server.uri, "nbd0"]
            done = subprocess.run([sys.executable, "-c", WITHOUT_PYROUTE2, *words], capture_output=True, text=True)
            begin = (
                "nbdattach: /dev/nbd0: nobody will reconnect this device: netlink backend: pyroute2 is not installed ("
            )
            assert (done.returncode, done.stderr.startswith(begin), done.stderr.count("\n")) == (0, said, said), done
            nbd_ok("disconnect", "nbd0")
