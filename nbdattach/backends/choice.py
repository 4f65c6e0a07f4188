# SPDX-License-Identifier: GPL-2.0-or-later
"""Chooses the backend, and explains why the other one cannot be used."""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import replace

from nbdattach.backends.base import Hold, Job
from nbdattach.connect_options import ConnectOptions
from nbdattach.device import Device
from nbdattach.errors import KernelRefused, NbdattachError
from nbdattach.immutable import immutable


@immutable
class Backend:
    """A way into the kernel. `makes_devices`: it attaches at numbers that do not exist yet.

    `lost`: why it is not the other one, which nobody has ruled out, and by which a device outlives a lost server.
    """

    name: str
    attach: Callable[[Device, Job], Hold]
    makes_devices: bool
    lost: NbdattachError | None = None


def choose(options: ConnectOptions) -> Backend:
    """The backend of --backend; auto prefers netlink. Raises `KernelRefused` if it cannot do what was requested."""
    missing = None
    if options.backend != "ioctl":
        missing = why_no_netlink()
        if missing is None:
            from nbdattach.backends import by_netlink

            return Backend("netlink", by_netlink.attach, makes_devices=True)
        if options.backend == "netlink" or options.on_loss:
            raise missing
    require_possible(options)
    from nbdattach.backends import by_ioctl

    return Backend("ioctl", by_ioctl.attach, makes_devices=False, lost=missing)


def require_possible(options: ConnectOptions) -> None:
    """Raises `KernelRefused` if no kernel could do what was requested, or pyroute2 is needed and not installed."""
    if options.backend == "ioctl" and options.on_loss:
        raise KernelRefused(
            "--on-loss",
            "the ioctl backend cannot wait for a server: the kernel ends its attachment when the connection is lost",
            "use --backend netlink, or --on-loss fail",
        )
    if options.backend == "netlink" or options.on_loss:
        missing = _why_no_pyroute2()
        if missing:
            raise missing


def no_less_safe_than_one(options: ConnectOptions) -> tuple[ConnectOptions, list[str]]:
    """The options with as many connections as are safe by netlink, and a note if that is less than requested.

    With several connections, the driver sends a request again only because of its age: if it is too old, the driver
    takes its connection for dead and sends it over another, though the server may still work on it (nbd_xmit_timeout in
    nbd.c). No default is right: with a short one, a slow server gets no work done, and its late write overwrites newer
    data; with a long one, requests wait that long after each restart of the server. So the user must set it, or gets
    one connection. Without a monitor (--no-reconnect), no request is sent again.
    """
    if options.connections == 1 or (options.connections and (options.io_timeout or not options.reconnect)):
        return options, []
    notes = []
    if options.connections:
        cause = "with several, the kernel sends a request again after a fixed time, even if the server is only slow"
        notes.append(f"only one connection is made: {cause} (--io-timeout TIME sets that time)")
    return replace(options, connections=1), notes


def how_to_install() -> str:
    """The command that installs pyroute2 for the Python that runs this program."""
    if _refuses_pip():
        return "apt install python3-pyroute2"
    return f"{sys.executable} -m pip install 'pyroute2>=0.7.2'"


def _refuses_pip() -> bool:
    """Whether pip refuses to install, because this Python is Debian's own and not that of a venv (PEP 668)."""
    import sysconfig

    mark = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    return sys.prefix == sys.base_prefix and os.path.exists(mark)


def why_no_netlink() -> NbdattachError | None:
    """None if netlink can be used, otherwise the reason and the remedy."""
    missing = _why_no_pyroute2()
    if missing:
        return missing
    from nbdattach.kernel import netlink

    try:
        netlink.Family().close()
    except OSError as error:
        if error.errno == errno.ENOENT:
            return KernelRefused("netlink backend", "the kernel has no netlink family nbd here", "use --backend ioctl")
        return KernelRefused.at("netlink backend", "opening it", error.errno or 0, "use --backend ioctl")
    return None


def _why_no_pyroute2() -> NbdattachError | None:
    if importlib.util.find_spec("pyroute2") is not None:
        return None
    return KernelRefused("netlink backend", "pyroute2 is not installed", f"{how_to_install()}, or --backend ioctl")
