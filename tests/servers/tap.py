# SPDX-License-Identifier: GPL-2.0-or-later
"""The network between this machine and a guest with its own network card: a tap device."""

from __future__ import annotations

import os
import subprocess


def make_network(tap: str, host: str, target: str) -> None:
    """The device `tap` with the address `host`, in our own network namespace: the machine's is not touched.

    `target` is the target of make (1) if there is no such namespace.
    """
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout.split("\n")
    if any(line and not line.startswith(("lo ", f"{tap} ")) for line in links):
        raise RuntimeError(f"these tests run in a network namespace of their own: make {target}")
    if not any(line.startswith(f"{tap} ") for line in links):
        for command in (
            f"ip tuntap add dev {tap} mode tap",
            f"ip address add {host}/24 dev {tap}",
            # UML promises to take packets that were put together from several, and cuts them off at 1500 bytes, so
            # that each arrives when TCP has sent it a second time: 40 kB a second.
            f"ip link set {tap} gso_max_segs 1",
            f"ip link set {tap} up",
            "ip link set lo up",
        ):
            subprocess.run(command.split(), check=True)
    assert os.path.exists("/dev/net/tun")
