# SPDX-License-Identifier: GPL-2.0-or-later
"""The one door to pyroute2: the kernel's generic netlink family "nbd".

Commands, attributes and their types are those of include/uapi/linux/nbd-netlink.h; what each does is in
drivers/block/nbd.c (nbd_genl_connect, nbd_genl_reconfigure, nbd_genl_disconnect). Importing pyroute2 costs time and
memory, so three of its modules are imported without the rest, and this module only where netlink is really used.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from nbdattach import lazy_package

lazy_package.defer("pyroute2")

from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, SOL_NETLINK, genlmsg, nla  # noqa: E402
from pyroute2.netlink.exceptions import NetlinkError  # noqa: E402
from pyroute2.netlink.generic import GenericNetlinkSocket  # noqa: E402

FAMILY = "nbd"
VERSION = 1
MULTICAST_GROUP = "nbd_mc_group"

NBD_CMD_CONNECT = 1
NBD_CMD_DISCONNECT = 2
NBD_CMD_RECONFIGURE = 3
NBD_CMD_LINK_DEAD = 4

# linux/nbd.h, as bits: the kernel disconnects the device when the last opener closes it.
NBD_CFLAG_DISCONNECT_ON_CLOSE = 1 << 1

_NETLINK_GENERIC = 16
_NETLINK_ADD_MEMBERSHIP = 1
_MAX_DATAGRAM = 1 << 16
# linux/netlink.h: the error of struct nlmsgerr, behind struct nlmsghdr of 16 bytes; 0 in an acknowledgement.
_NLMSGERR = struct.Struct("=16xi")


class _Message(genlmsg):  # type: ignore[misc]
    """The attributes of the family, in the order of their numbers."""

    nla_map = (
        ("NBD_ATTR_UNSPEC", "none"),
        ("NBD_ATTR_INDEX", "uint32"),
        ("NBD_ATTR_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_TIMEOUT", "uint64"),
        ("NBD_ATTR_SERVER_FLAGS", "uint64"),
        ("NBD_ATTR_CLIENT_FLAGS", "uint64"),
        ("NBD_ATTR_SOCKETS", "sockets"),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", "uint64"),
        ("NBD_ATTR_DEVICE_LIST", "hex"),
        ("NBD_ATTR_BACKEND_IDENTIFIER", "asciiz"),
    )

    class sockets(nla):  # type: ignore[misc]  # noqa: N801 - pyroute2 finds it by the name in nla_map
        nla_map = (("NBD_SOCK_ITEM_UNSPEC", "none"), ("NBD_SOCK_ITEM", "item"))

        class item(nla):  # type: ignore[misc]  # noqa: N801
            nla_map = (("NBD_SOCK_UNSPEC", "none"), ("NBD_SOCK_FD", "uint32"))


def _socket_list(numbers: Sequence[int]) -> dict[str, list[Any]]:
    return {"attrs": [("NBD_SOCK_ITEM", {"attrs": [("NBD_SOCK_FD", number)]}) for number in numbers]}


class Family:
    """An open socket of the family; for the few requests that belong together. Raises OSError throughout.

    ENOENT at opening: the kernel has no such family here. Times are whole seconds, sizes bytes, sockets descriptors
    of this process, of which the kernel takes references of its own.
    """

    def __init__(self) -> None:
        self._socket = GenericNetlinkSocket()
        try:
            # Else it logs a missing family as an error, on its own.
            self._socket.module_err_level = "debug"
            self._socket.bind(FAMILY, _Message)
        except NetlinkError as error:
            self._socket.close()
            raise OSError(error.code, "the nbd family") from error
        except BaseException:
            self._socket.close()
            raise

    def connect(
        self,
        index: int,
        *,
        size: int,
        block_size: int,
        flags: int,
        sockets: Sequence[int],
        dead_conn_timeout: int,
        timeout: int,
        client_flags: int,
        backend: str,
    ) -> None:
        """NBD_CMD_CONNECT; a device that does not exist yet is made. EBUSY: attached already, or just open."""
        attributes: list[tuple[str, Any]] = [
            ("NBD_ATTR_INDEX", index),
            ("NBD_ATTR_SIZE_BYTES", size),
            ("NBD_ATTR_BLOCK_SIZE_BYTES", block_size),
            ("NBD_ATTR_SERVER_FLAGS", flags),
            ("NBD_ATTR_CLIENT_FLAGS", client_flags),
            ("NBD_ATTR_DEAD_CONN_TIMEOUT", dead_conn_timeout),
            ("NBD_ATTR_SOCKETS", _socket_list(sockets)),
            ("NBD_ATTR_BACKEND_IDENTIFIER", backend),
        ]
        if timeout:
            attributes.append(("NBD_ATTR_TIMEOUT", timeout))
        self._request(NBD_CMD_CONNECT, attributes)

    def reconfigure(
        self,
        index: int,
        backend: str,
        *,
        sockets: Sequence[int] = (),
        size: int | None = None,
        timeout: int | None = None,
        dead_conn_timeout: int | None = None,
        client_flags: int | None = None,
    ) -> None:
        """NBD_CMD_RECONFIGURE. EINVAL: nothing attached, or by another `backend`.

        Success says nothing of the sockets: those for which no connection was dead are dropped in silence. A change
        of the size waits for all requests in flight, so it never goes together with sockets.
        """
        attributes: list[tuple[str, Any]] = [("NBD_ATTR_INDEX", index), ("NBD_ATTR_BACKEND_IDENTIFIER", backend)]
        for name, value in (
            ("NBD_ATTR_SIZE_BYTES", size),
            ("NBD_ATTR_TIMEOUT", timeout),
            ("NBD_ATTR_DEAD_CONN_TIMEOUT", dead_conn_timeout),
            ("NBD_ATTR_CLIENT_FLAGS", client_flags),
        ):
            if value is not None:
                attributes.append((name, value))
        if sockets:
            attributes.append(("NBD_ATTR_SOCKETS", _socket_list(sockets)))
        self._request(NBD_CMD_RECONFIGURE, attributes)

    def disconnect(self, index: int) -> None:
        """NBD_CMD_DISCONNECT: requests in flight fail, whoever uses the device. No error where nothing is attached."""
        self._request(NBD_CMD_DISCONNECT, [("NBD_ATTR_INDEX", index)])

    def farewell(self, index: int) -> Farewell:
        """The message of `disconnect`, complete, so that sending it takes one system call."""
        return Farewell(self._socket.prid, index)

    def dead_links(self) -> DeadLinks:
        """From now on, the devices of which a connection died."""
        return DeadLinks(self._socket.mcast_groups[MULTICAST_GROUP], self._socket.prid)

    def _request(self, command: int, attributes: list[tuple[str, Any]]) -> None:
        message = _Message()
        message["cmd"] = command
        message["version"] = VERSION
        message["attrs"] = attributes
        try:
            for _ in self._socket.nlm_request(message, msg_type=self._socket.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK):
                pass
        except NetlinkError as error:
            raise OSError(error.code, "netlink") from error

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Family:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()


class Farewell:
    """NBD_CMD_DISCONNECT for one device, with an open socket to send it over. Raises OSError throughout."""

    def __init__(self, family: int, index: int) -> None:
        message = _Message()
        message["cmd"] = NBD_CMD_DISCONNECT
        message["version"] = VERSION
        message["attrs"] = [("NBD_ATTR_INDEX", index)]
        message["header"]["type"] = family
        message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK
        message.encode()
        self.data = bytes(message.data)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
        self._socket.bind((0, 0))

    def fileno(self) -> int:
        """For a process that sends `data` in our place; `read_answer` is called after that."""
        return self._socket.fileno()

    def send(self) -> None:
        """The kernel carries it out before send(2) returns."""
        self._socket.send(self.data)
        self.read_answer()

    def read_answer(self) -> None:
        """Raises what the kernel has refused it with."""
        number = _NLMSGERR.unpack_from(self._socket.recv(_MAX_DATAGRAM))[0]
        if number:
            raise OSError(-number, os.strerror(-number))

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Farewell:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DeadLinks:
    """A subscription to NBD_CMD_LINK_DEAD, to be polled by its `fileno`."""

    def __init__(self, group: int, family: int) -> None:
        self._family = family
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_GENERIC)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[int] | None:
        """Indices announced since the last time, one for each dead connection; None when some were lost."""
        found: list[int] = []
        while True:
            try:
                data = self._socket.recv(_MAX_DATAGRAM)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return None
                raise
            message = _Message(data)
            message.decode()
            if message["header"]["type"] == self._family and message["cmd"] == NBD_CMD_LINK_DEAD:
                found.append(message.get_attr("NBD_ATTR_INDEX"))

    def close(self) -> None:
        self._socket.close()
