# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's announcements of dead connections (NBD_CMD_LINK_DEAD), read by pyroute2. No other module uses pyroute2.

Its package costs 15 MB, so we import one of its modules without the rest.
"""

from __future__ import annotations

import errno
import socket

from nbdattach.kernel import genetlink, netlink
from nbdattach.kernel.bare_package import bare

with bare("pyroute2"):
    from pyroute2.netlink import SOL_NETLINK, genlmsg

_NETLINK_ADD_MEMBERSHIP = 1


class _Announcement(genlmsg):  # type: ignore[misc]
    """The attributes of the family, by their numbers; the kernel announces nothing but an index."""

    nla_map = (("NBD_ATTR_UNSPEC", "none"), ("NBD_ATTR_INDEX", "uint32"))


class DeadLinks:
    """A subscription, to be polled by its `fileno`: reports each connection that dies from now on. Raises OSError."""

    def __init__(self, group: int, family: int) -> None:
        self._family = family
        self._socket = genetlink.opened(socket.SOCK_NONBLOCK)
        self._socket.setsockopt(SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[int] | None:
        """Indices of devices announced since the last time, one for each connection; None when some were lost."""
        found: list[int] = []
        while True:
            try:
                data = self._socket.recv(genetlink.MAX_DATAGRAM)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return None
                raise
            message = _Announcement(data)
            message.decode()
            if message["header"]["type"] == self._family and message["cmd"] == netlink.NBD_CMD_LINK_DEAD:
                found.append(message.get_attr("NBD_ATTR_INDEX"))

    def close(self) -> None:
        self._socket.close()


def subscribed() -> DeadLinks:
    """Raises OSError."""
    with netlink.Family() as family:
        return DeadLinks(family.groups[netlink.MULTICAST_GROUP], family.number)
