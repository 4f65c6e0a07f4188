"""Which backend attaches, and in plain words why another one cannot."""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from nbdattach.backend import Hold, Job
from nbdattach.device import Device
from nbdattach.errors import KernelRefused, NbdattachError
from nbdattach.wishes import Wishes


@dataclass(frozen=True, slots=True)
class Backend:
    """A way into the kernel. `makes_devices`: it attaches at numbers that do not exist yet."""

    name: str
    attach: Callable[[Device, Job], Hold]
    makes_devices: bool


def choose(wishes: Wishes) -> Backend:
    """What --backend says; auto takes netlink where it can be had. Raises `KernelRefused` for what it cannot do."""
    if wishes.backend != "ioctl":
        missing = why_no_netlink()
        if missing is None:
            from nbdattach import netlink_backend

            return Backend("netlink", netlink_backend.attach, makes_devices=True)
        if wishes.backend == "netlink" or wishes.on_loss:
            raise missing
    elif wishes.on_loss:
        raise KernelRefused(
            "--on-loss",
            "the ioctl backend cannot wait for a server: the kernel ends its attachment when the connection is lost",
            "--backend netlink can; with ioctl it is --on-loss fail",
        )
    from nbdattach import ioctl_backend

    return Backend("ioctl", ioctl_backend.attach, makes_devices=False)


def why_no_netlink() -> NbdattachError | None:
    """None where netlink can be used, else the reason and the remedy."""
    if importlib.util.find_spec("pyroute2") is None:
        return KernelRefused(
            "netlink backend", "pyroute2 is not installed", "pip install 'nbdattach[netlink]', or --backend ioctl"
        )
    from nbdattach import netlink

    try:
        netlink.Family().close()
    except OSError as error:
        if error.errno == errno.ENOENT:
            return KernelRefused(
                "netlink backend", "the kernel has no netlink family nbd here", "--backend ioctl does without"
            )
        return KernelRefused.at("netlink backend", "opening it", error.errno or 0, "--backend ioctl does without")
    return None
