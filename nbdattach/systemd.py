"""The one door to systemd: whether it is there, and sd_notify(3) without a library."""

from __future__ import annotations

import os
import socket

_UNITS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")


def in_charge() -> bool:
    """Whether it is this machine's init (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def installed(unit: str) -> bool:
    """Whether there is a file of that unit; a transient one goes when it is stopped."""
    return any(os.path.exists(f"{folder}/{unit}") for folder in _UNITS)


def notify(state: str) -> None:
    """Sends `state` to the service manager; nothing happens where none asked to be told.

    It is not waited for: one that hangs, as on a disk whose server is away, shall not hang us.
    """
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), socket.MSG_DONTWAIT, "\0" + place[1:] if place.startswith("@") else place)
        except OSError:
            return
