# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs that are compared in the guest: how each attaches a server's export at a device, and detaches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from servers import Server

# The measurements there, and those that need no guest.
PARTS = (
    *("attaching", "attaching-netlink", "before", "data", "restarts", "outages", "monitor", "at-once", "crowd"),
    *("tls", "tls-chacha20", "relay", "images-raw", "images-qcow2"),
)
HERE = ("cpu", "imports", "openers", "watching")
SECTORS = (128, 256, 512, 1024, 4096)
CONNECTIONS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Contender:
    """`max_sectors_kb` is written to the device's queue once it is attached; 0 leaves it as the tool did.

    `data_path_aim` is the target for the throughput of nbdattach, divided by that of this one.
    """

    name: str
    attach: Callable[[Server, str], list[str]]
    detach: Callable[[str], list[str]]
    max_sectors_kb: int = 0
    data_path_aim: str = ""


def tools(nbdattach: str) -> list[Contender]:
    """The tools, each as its users call it. The others are compared with the first."""
    return [
        nbdattach_with(nbdattach, "nbdattach ioctl", "--backend", "ioctl"),
        netlink(nbdattach),
        Contender("nbd-client ioctl", nbd_client_ioctl, nbd_client_off, data_path_aim=">= 1.0"),
        Contender("nbd-client netlink", nbd_client, nbd_client_off, data_path_aim=">= 1.0"),
        Contender("qemu-nbd -c", qemu_nbd, qemu_nbd_off, data_path_aim=">= 1.5"),
    ]


def sectors(nbdattach: str) -> list[Contender]:
    """nbdattach ioctl with several limits of a request; the first is its default."""
    ioctl = ("--backend", "ioctl")
    return [nbdattach_with(nbdattach, "as it comes", *ioctl)] + [
        nbdattach_with(nbdattach, f"{size} KiB", *ioctl, max_sectors_kb=size) for size in SECTORS
    ]


def connections(nbdattach: str) -> list[Contender]:
    """nbdattach ioctl with several connections; the first is its default."""
    ioctl = ("--backend", "ioctl")
    return [nbdattach_with(nbdattach, "auto", *ioctl)] + [
        nbdattach_with(nbdattach, f"-C {count}", *ioctl, "-C", str(count)) for count in CONNECTIONS
    ]


def by_ioctl(nbdattach: str) -> list[Contender]:
    """The first is ours."""
    ioctl = {"nbdattach ioctl", "nbd-client ioctl", "qemu-nbd -c"}
    return [one for one in tools(nbdattach) if one.name in ioctl]


def by_netlink(nbdattach: str) -> list[Contender]:
    """Those that attach with one message; the first is ours."""
    return [netlink(nbdattach), Contender("nbd-client netlink", nbd_client, nbd_client_off)]


def netlink(nbdattach: str, *options: str) -> Contender:
    return nbdattach_with(nbdattach, "nbdattach netlink", "--backend", "netlink", *options)


def nbdattach_with(program: str, name: str, *options: str, max_sectors_kb: int = 0) -> Contender:
    def attach(server: Server, device: str) -> list[str]:
        # The tag: the same one is attached once only.
        tag = f"{name} at {device}"
        return [program, "connect", "--shared", "--tag", tag, *options, server.uri, device]

    return Contender(name, attach, lambda device: [program, "disconnect", device], max_sectors_kb)


def build(program: str, name: str, *options: str) -> Contender:
    """With options that the build before has, too. So it cannot attach an export at two devices."""
    return Contender(
        name,
        lambda server, device: [program, "connect", *options, server.uri, device],
        lambda device: [program, "disconnect", device],
    )


def nbd_client(server: Server, device: str, *options: str) -> list[str]:
    place = ["-unix", server.place] if isinstance(server.place, str) else [server.place[0], str(server.place[1])]
    return ["nbd-client", *options, *place, device]


def nbd_client_ioctl(server: Server, device: str) -> list[str]:
    return nbd_client(server, device, "-nonetlink", "-N", "")  # without a name, 3.27.1 takes nothing beside it


def nbd_client_off(device: str) -> list[str]:
    return ["nbd-client", "-d", device]


def qemu_nbd(server: Server, device: str) -> list[str]:
    return ["qemu-nbd", "--format=raw", f"--connect={device}", server.uri]


def qemu_nbd_off(device: str) -> list[str]:
    return ["qemu-nbd", "--disconnect", device]
