# SPDX-License-Identifier: GPL-2.0-or-later
"""A network of its own for servers, and links to it that can be cut: then no FIN or RST arrives.

10.9.N.1 is this end and 10.9.N.2 the server's, in the network namespace `far`. Each address goes without the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tool import shell

ADDRESS = "10.9.0.2"


@contextmanager
def network(*addresses: str) -> Iterator[str]:
    """Its name; it has those addresses."""
    shell("ip netns add far && ip link add near type veth peer name far netns far && ip link set near up")
    shell("ip -n far link set far up && ip -n far link set lo up")
    for address in addresses:
        shell(f"ip addr add {address.removesuffix('2')}1/24 dev near")
        heal_link(address)
    yield "far"
    shell("ip link del near && ip netns del far")


def cut_link(address: str = ADDRESS) -> None:
    """Removes the server's address; the server and its connections stay."""
    shell(f"ip -n far addr del {address}/24 dev far")


def heal_link(address: str = ADDRESS) -> None:
    shell(f"ip -n far addr add {address}/24 dev far")


def lose_large_packets() -> None:
    """Of all connections, also of new ones; small packets get through, and no host gets an error (a black hole)."""
    shell("ip link set near gso_max_segs 1 && ip -n far link set far mtu 600")
    shell("ip -n far route change 10.9.0.0/24 dev far advmss 1460")
