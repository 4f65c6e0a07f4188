# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's command line: the words that Debian's nbd-client and dracut read there, and invalid ones."""

from __future__ import annotations

import pytest

from nbdattach.boot import kernel_command_line
from nbdattach.connect_options import FOREVER
from nbdattach.errors import Malformed
from nbdattach.text import quoted

DHCP = {"ROOTSERVER": "10.0.0.1", "ROOTPATH": "boot,disk,nbd2"}


def root(line: str, **dhcp: str) -> kernel_command_line.Root:
    found = kernel_command_line.parse(f"BOOT_IMAGE=/vmlinuz quiet {line} ip=dhcp\n", dhcp)
    assert found
    return found


@pytest.mark.parametrize(
    "line", ["", "root=/dev/sda1", "root=/dev/nbd0", "root=UUID=1234 nbdopts=swap", "nbdroot=", "root=nbd"]
)
def test_a_root_elsewhere_is_left_alone(line: str) -> None:
    assert kernel_command_line.parse(line, DHCP) is None


@pytest.mark.parametrize(
    ("line", "uri", "device", "node"),
    [
        # A URI, with the root in the kernel's own option, or on the device itself.
        ("root=/dev/nbd0 nbdroot=nbd://db1/disk", "nbd://db1/disk", "nbd0", ""),
        ("root=/dev/nbd3p2 nbdroot=nbd://db1/disk", "nbd://db1/disk", "nbd3", ""),
        ("root=UUID=12-34 nbdroot=nbds://db1:10810/a,b", "nbds://db1:10810/a,b", "nbd0", ""),
        ("root=LABEL=root nbddev=/dev/nbd1 nbdroot=nbd://db1", "nbd://db1", "nbd1", ""),
        ("root=nbd://db1/disk", "nbd://db1/disk", "nbd0", "/dev/nbd0"),
        ('root="nbd://db1/disk"', "nbd://db1/disk", "nbd0", "/dev/nbd0"),
        ('"root=nbd://db1/disk"', "nbd://db1/disk", "nbd0", "/dev/nbd0"),
        ("root=nbds://[2001:db8::1]:10810/disk", "nbds://[2001:db8::1]:10810/disk", "nbd0", "/dev/nbd0"),
        # nbd-client of Debian: HOST,EXPORT,DEVICE; HOST,PORT; HOST:PORT/EXPORT; and the slash of NFS.
        ("nbdroot=db1,disk,nbd2", "nbd://db1/disk", "nbd2", "/dev/nbd2"),
        ("nbdroot=db1,10810,nbd0", "nbd://db1/10810", "nbd0", "/dev/nbd0"),
        ("nbdroot=db1,disk,nbd2p1", "nbd://db1/disk", "nbd2", "/dev/nbd2p1"),
        ("root=/dev/nbd5 nbdroot=db1,disk,nbd2", "nbd://db1/disk", "nbd5", ""),
        ("root=/dev/nbd0 nbdroot=db1,10810", "nbd://db1:10810", "nbd0", ""),
        ("root=/dev/nbd0 nbdroot=10.0.0.7:10810/disk", "nbd://10.0.0.7:10810/disk", "nbd0", ""),
        ("root=/dev/nbd0 nbdroot=10.0.0.7:10810/123", "nbd://10.0.0.7:10810/123", "nbd0", ""),
        ("root=/dev/nbd0 nbdroot=10.0.0.7:/srv/disk", "nbd://10.0.0.7//srv/disk", "nbd0", ""),
        ("root=/dev/nbd0 nbdroot=[2001:db8::1]:10810/disk", "nbd://[2001:db8::1]:10810/disk", "nbd0", ""),
        ("root=/dev/nbd0 nbdroot=[2001:db8::1]:/disk", "nbd://[2001:db8::1]//disk", "nbd0", ""),
        ("root=/dev/nbd0 nbdroot=db1", "nbd://db1", "nbd0", ""),
        # dracut: nbd:SERVER:EXPORT, nbd:SERVER:PORT, nbd:SERVER:PORT/EXPORT
        ("root=nbd:db1:disk", "nbd://db1/disk", "nbd0", "/dev/nbd0"),
        ("root=nbd:db1:10810", "nbd://db1:10810", "nbd0", "/dev/nbd0"),
        ("root=nbd:db1:10810/disk:ext4", "nbd://db1:10810/disk", "nbd0", "/dev/nbd0"),
        ("root=nbd:[2001:db8::1]:disk", "nbd://[2001:db8::1]/disk", "nbd0", "/dev/nbd0"),
    ],
)  # fmt: skip
def test_forms(line: str, uri: str, device: str, node: str) -> None:
    found = root(line)
    assert (found.target.uri, found.device.name, found.root) == (uri, device, node)


@pytest.mark.parametrize(
    ("line", "uri", "device"),
    [
        ("nbdroot=dhcp", "nbd://boot/disk", "nbd2"),
        ("root=/dev/nbd0 nbdroot=dhcp,disk,nbd0", "nbd://10.0.0.1/disk", "nbd0"),
        ("root=/dev/nbd0 nbdroot=,disk,nbd0", "nbd://10.0.0.1/disk", "nbd0"),
        ("nbddev=/dev/nbd0", "nbd://boot/disk", "nbd0"),
        ("root=nbd:dhcp:disk", "nbd://10.0.0.1/disk", "nbd0"),
    ],
)
def test_what_dhcp_says(line: str, uri: str, device: str) -> None:
    found = root(line, **DHCP)
    assert (found.target.uri, found.device.name) == (uri, device)


def test_file_system_and_options_of_dracut() -> None:
    found = root("root=nbd:db1:disk:ext4:noatime,data=journal:bs=4096,dead-peer=9")
    assert (found.fstype, found.flags) == ("ext4", "noatime,data=journal")
    assert (found.options.block_size, found.options.dead_peer) == (4096, 9)


def test_a_root_waits_for_its_server_for_ever() -> None:
    options = root("nbdroot=nbd://db1/disk").options
    assert (options.root, options.on_loss, options.retry_for) == (True, FOREVER, 300)
    assert (options.backend, options.tls_transport, options.reconnect) == ("netlink", "kernel", True)


def test_options() -> None:
    found = root("nbdroot=nbds://db1/disk nbdopts=tls-ca=/etc/ca.pem,retry-for=0,on-loss=wait:60,read-only,tag=root")
    assert (found.target.tls, found.target.tls_ca) == (True, "/etc/ca.pem")
    options = found.options
    assert (options.retry_for, options.on_loss, options.read_only, options.tag) == (0, 60, True, "root")


def test_of_two_the_last_one_counts() -> None:
    assert root("nbdroot=nbd://db1 nbdroot=nbd://db2").target.uri == "nbd://db2"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("nbdroot=db1,disk,sda", "'sda': not an nbd device"),
        ("nbdroot=db1,a,b,nbd0", "nbdroot=db1,a,b,nbd0: more than HOST,EXPORT,DEVICE"),
        ("nbdroot=,disk,nbd0", "nbdroot: it names no server, and neither does DHCP"),
        ("nbdroot=dhcp", "nbdroot: it names no server, and neither does DHCP"),
        (
            "nbdroot=nbd://db1 nbdopts=backend=ioctl",
            "nbdopts: backend ioctl needs a process, but all processes of the initramfs end",
        ),
        (
            "nbdroot=nbds://db1 nbdopts=tls-transport=relay",
            "nbdopts: tls-transport relay needs a process, but all processes of the initramfs end",
        ),
        ("root=nbd:db1", "root=nbd:db1: neither a URI nor nbd:HOST:EXPORT"),
        ("root=nbds:db1:disk", "root=nbds:db1:disk: neither a URI nor nbd:HOST:EXPORT"),
        ("nbdroot=nbd://db1 nbdopts=no-such", "nbdroot or nbdopts: nbd://db1 - no-such: unknown option 'no-such'"),
        ("nbdroot=nbd://db1:0", "nbdroot or nbdopts: nbd://db1:0 -: 'nbd://db1:0': not a port: '0'"),
    ],
)  # fmt: skip
def test_mistakes(line: str, error: str) -> None:
    with pytest.raises(Malformed) as caught:
        kernel_command_line.parse(line, {})
    assert str(caught.value) == error


ESCAPES = [
    "db1,disk,nbd0 #", "nbd://evil/disk - #", "nbd://evil/disk no-such", "db1,#,nbd0", "#", "db1,disk\tx,nbd0",
    "db1,disk\nnbd1 evil -", "db1,di\x1bsk", "db1,disk\u2003#", "db1,di\x85sk", "db1,\x1fdisk",
]  # fmt: skip


@pytest.mark.parametrize("told", ESCAPES)
@pytest.mark.parametrize("name", ["ROOTPATH", "ROOTSERVER"])
def test_dhcp_cannot_take_options_away(name: str, told: str) -> None:
    """A blank and a # in the root path made a comment of `nbdopts=tls-ca=...`: without TLS, anyone is the server."""
    line = "nbdroot=dhcp" if name == "ROOTPATH" else "nbdroot=,disk,nbd0"
    with pytest.raises(Malformed) as caught:
        root(f"{line} nbdopts=tls-ca=/etc/ca.pem", **{**DHCP, name: told})
    assert caught.value.cause == "contains a blank, # or a control character"
    assert caught.value.thing == f"{name} of DHCP: {quoted(told)}"
    assert caught.value.thing.isprintable()


@pytest.mark.parametrize(
    "line", ["nbdroot=db1,#disk,nbd0", "root=nbd:db1:#disk", "nbdroot=#", "root=/dev/nbd0 nbddev=#"]
)
def test_a_comment_in_the_kernels_line_is_a_mistake(line: str) -> None:
    with pytest.raises(Malformed, match="contains a blank, # or a control character"):
        root(f"{line} nbdopts=tls-ca=/etc/ca.pem", **DHCP)


def test_options_that_are_a_comment_are_a_mistake() -> None:
    with pytest.raises(Malformed, match="begins with #"):
        root("nbdroot=nbds://db1/disk nbdopts=#tls-ca=/etc/ca.pem")


@pytest.mark.parametrize("told", ["db1,disk,nbd2", "nbd://db1/a%20b%23c", "10.0.0.7:10810/disk"])
def test_what_dhcp_says_keeps_the_operators_options(told: str) -> None:
    found = root("nbdroot=dhcp nbdopts=tls-ca=/etc/ca.pem,tag=a#b", ROOTPATH=told)
    assert (found.target.tls, found.target.tls_ca, found.options.tag) == (True, "/etc/ca.pem", "a#b")


@pytest.mark.parametrize(
    "line", ["root=nbd:db1\x1b", "nbdroot=a,b\x1b,c,d", "nbdroot=nbd://db1\x1b/x", "nbdroot=db1 nbdopts=\x1b"]
)
def test_what_is_shown_of_a_mistake_is_safe_for_a_terminal(line: str) -> None:
    with pytest.raises(Malformed) as caught:
        root(line)
    assert (str(caught.value) + caught.value.hint).isprintable()
