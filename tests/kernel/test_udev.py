# SPDX-License-Identifier: GPL-2.0-or-later
"""With the real udevd: it does not disturb connect and disconnect, nor do they disturb it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import nbdkit
from test_restart import place, state_of
from tool import attached, eventually, nbd_ok, partitioned_image, shell

from nbdattach.connect_options import ConnectOptions
from nbdattach.device import Device
from nbdattach.host import udev
from nbdattach.kernel import netlink, uevents
from nbdattach.kernel.sysfs import Kernel
from nbdattach.operations.connections import connected
from nbdattach.protocol.target import parse_target
from nbdattach.reporter import silent

pytestmark = pytest.mark.udev
FIRST = Kernel(Device(0))
SYSTEMD = Path(__file__).resolve().parents[2] / "systemd"
BY_NBD = Path("/dev/disk/by-nbd")


@pytest.fixture(scope="module", autouse=True)
def names() -> None:
    """The rule and its helper, installed."""
    shutil.copy(SYSTEMD / "nbdattach-tag", "/usr/lib/udev/nbdattach-tag")
    rules = Path("/run/udev/rules.d")
    rules.mkdir(parents=True, exist_ok=True)
    shutil.copy(SYSTEMD / "60-nbdattach.rules", rules)
    shell("udevadm control --reload && udevadm settle")


def links() -> dict[str, str]:
    """The links in /dev/disk/by-nbd, and where they lead."""
    return {path.name: os.path.realpath(path) for path in BY_NBD.iterdir()} if BY_NBD.exists() else {}


def links_to_first() -> list[str]:
    """All links that udev made to nbd0, but for those by its own rules."""
    told = shell("udevadm info -q symlink /dev/nbd0").split()
    return [link for link in told if not link.startswith("disk/by-diskseq/")]


@contextlib.contextmanager
def foreign(uri: str, identifier: str) -> Iterator[None]:
    """nbd0, attached by one netlink message and nothing else; the test waits for udev."""
    with (
        connected(parse_target(uri), ConnectOptions(connections=1), silent) as (_, connections, export, _),
        netlink.Family() as family,
    ):
        family.connect(
            0,
            size=export.size,
            block_size=512,
            flags=export.flags,
            sockets=[one.stream.sock.fileno() for one in connections],
            dead_conn_timeout=0,
            timeout=0,
            client_flags=0,
            backend=identifier,
        )
        try:
            shell("udevadm settle")
            yield
        finally:
            family.disconnect(0)
            shell("udevadm settle")


def test_udevd_really_runs() -> None:
    assert udev.running()
    assert "systemd-udevd" in shell("ps ax")


def test_partitions_and_their_links_are_there_when_connect_returns(tmp_path: Path) -> None:
    image = partitioned_image(tmp_path / "image")
    uuids = [
        line.strip().lower() for line in shell(f"sfdisk --part-uuid {image} 1; sfdisk --part-uuid {image} 2").split()
    ]
    with nbdkit("file", f"file={image}") as server:
        for _ in range(5):
            nbd_ok("connect", server.uri, "nbd0")
            links = [os.path.realpath(f"/dev/disk/by-partuuid/{uuid}") for uuid in uuids]
            assert links == ["/dev/nbd0p1", "/dev/nbd0p2"]
            assert FIRST.partitions == ["nbd0p1", "nbd0p2"]
            nbd_ok("disconnect", "nbd0")
            assert not Path("/dev/nbd0p1").exists()


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("vm1-root", "vm1-root"),
        ("nbd://db1/disk", r"nbd:\x2f\x2fdb1\x2fdisk"),
        ("..", r"\x2e."),
        ("../../sda", r"\x2e.\x2f..\x2fsda"),
        ("a b/../c", r"a\x20b\x2f..\x2fc"),
        ("$(touch /run/owned) `touch /run/owned`", None),
        ("; touch /run/owned; '\"; touch /run/owned; \"'", None),
        ("%k $kernel %c $result %%", r"\x25k\x20\x24kernel\x20\x25c\x20\x24result\x20\x25\x25"),
        (r"back\slash\x2f", r"back\x5cslash\x5cx2f"),
        ("Größe", r"Gr\xc3\xb6\xc3\x9fe"),
        ("/" * 255, None),
        ("/" * 27 + "a", r"\x2f" * 27 + "a"),
        ("disk-part1", r"disk\x2dpart1"),
    ],
)
def test_name_of_any_tag_is_there_when_connect_returns(tag: str, name: str | None) -> None:
    with nbdkit("memory", "1M") as server:
        nbd_ok("connect", "--backend", "netlink", "--no-reconnect", "--tag", tag, server.uri, "nbd0")
        found = links()
        assert list(found.values()) == ["/dev/nbd0"]
        assert list(found) == [name or shell("/usr/lib/udev/nbdattach-tag /sys/block/nbd0/backend").strip()]
        assert links_to_first() == [f"disk/by-nbd/{one}" for one in found]
        nbd_ok("disconnect", "nbd0")
    assert links() == {}
    assert not Path("/run/owned").exists()


def test_partitions_have_names(tmp_path: Path) -> None:
    with nbdkit("file", f"file={partitioned_image(tmp_path / 'image')}") as server:
        for tag, name in [("vm1", "vm1"), ("/" * 27, r"\x2f" * 27), ("/" * 255, None)]:
            nbd_ok("connect", "--backend", "netlink", "--no-reconnect", "--tag", tag, server.uri, "nbd0")
            name = name or min(links())
            assert links() == {
                name: "/dev/nbd0",
                f"{name}-part1": "/dev/nbd0p1",
                f"{name}-part2": "/dev/nbd0p2",
            }
            nbd_ok("disconnect", "nbd0")
            assert links() == {}


@pytest.mark.spoils
def test_what_other_tools_attach_has_its_names(tmp_path: Path) -> None:
    with nbdkit("file", f"file={partitioned_image(tmp_path / 'image')}") as server:
        with foreign(server.uri, "a\nb\x01\n"):
            name = r"a\x0ab\x01\x0a"
            assert links() == {name: "/dev/nbd0", f"{name}-part1": "/dev/nbd0p1", f"{name}-part2": "/dev/nbd0p2"}
        assert links() == {}
        with foreign(server.uri, "x" * 1024):
            assert sorted(links().values()) == ["/dev/nbd0", "/dev/nbd0p1", "/dev/nbd0p2"]
        assert links() == {}


@pytest.mark.spoils
def test_no_identifier_no_name() -> None:
    with nbdkit("memory", "1M") as server:
        with foreign(server.uri, ""):
            assert FIRST.by_netlink and FIRST.backend is None
            assert links() == {}
        nbd_ok("connect", "--backend", "ioctl", "--tag", "vm1", server.uri, "nbd0")
        assert links() == {}
        nbd_ok("disconnect", "nbd0")


SEEN = Path("/run/seen")
RULE = """\
ACTION=="change", SUBSYSTEM=="bdi", ENV{SYNTH_ARG_NBDATTACH}=="?*", \
  RUN+="/bin/sh -c 'echo $env{SYNTH_ARG_DEVICE} $env{SYNTH_ARG_NBDATTACH} >>/run/seen'"
ACTION=="change", SUBSYSTEM=="block", KERNEL=="nbd0", RUN+="/bin/sh -c 'echo disk >>/run/seen'"
"""


def is_heard() -> bool:
    """Whether udev has taken the rule. On a busy machine it once missed the first event after it had been told."""
    uevents.send(Device(0), "heard")
    shell("udevadm settle")
    return SEEN.exists()


@pytest.mark.timeout(300)
def test_rules_see_each_loss_and_return_and_udev_never_waits_for_the_server(tmp_path: Path) -> None:
    there = place(tmp_path, "image")
    partitioned_image(there.image)
    with contextlib.ExitStack() as servers:
        server = servers.enter_context(there.serve())
        with attached(server.uri, "nbd0", tag="vm1", backend="netlink"):
            Path("/run/udev/rules.d/99-seen.rules").write_text(RULE)
            shell("udevadm control --reload && udevadm settle")
            eventually(is_heard)
            before = links()
            for _ in range(2):
                SEEN.unlink(missing_ok=True)
                server.kill()
                eventually(lambda: SEEN.exists() and state_of("nbd0") == "reconnecting")
                shell("udevadm settle --timeout=20")
                assert (SEEN.read_text(), links()) == ("nbd0 lost\n", before)
                server = servers.enter_context(there.serve())
                eventually(lambda: SEEN.read_text() == "nbd0 lost\nnbd0 reconnected\n")
                eventually(lambda: state_of("nbd0") == "connected")
            shell("udevadm settle --timeout=20")
            assert (SEEN.read_text(), links()) == ("nbd0 lost\nnbd0 reconnected\n", before)
            Path("/run/udev/rules.d/99-seen.rules").unlink()
