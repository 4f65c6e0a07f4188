# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's generic netlink family "nbd", by pyroute2. No other module uses pyroute2.

Commands, attributes and their types are those of include/uapi/linux/nbd-netlink.h; the code behind each command is in
drivers/block/nbd.c (nbd_genl_connect, nbd_genl_reconfigure, nbd_genl_disconnect).

pyroute2 writes and reads the messages; the socket is our own. pyroute2's sockets come with 100 modules (asyncio since
0.9), which take twice as long to import as all the rest of a command, and each needs 3 ms to open. So we import one of
its modules without the rest, and import this module only if netlink is really used.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from nbdattach.kernel.bare_package import bare

with bare("pyroute2"):
    from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, SOL_NETLINK, ctrlmsg, genlmsg, nla

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
# linux/netlink.h: struct nlmsghdr; and behind it, in NLMSG_ERROR, the error of struct nlmsgerr, 0 to acknowledge.
_NLMSGHDR = struct.Struct("=IHHII")
_NLMSGERR = struct.Struct("=i")
_NLMSG_ERROR = 2
# linux/genetlink.h
_GENL_ID_CTRL = 16
_CTRL_CMD_GETFAMILY = 3


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


def _opened(flags: int = 0) -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | flags, _NETLINK_GENERIC)
    made.bind((0, 0))
    return made


class _Socket:
    """A generic netlink socket, on which a request gets its answer. Raises OSError throughout."""

    def __init__(self) -> None:
        self._socket = _opened()
        self._number = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def message(self, family: int, form: type[genlmsg], command: int, attributes: list[tuple[str, Any]]) -> bytes:
        """The next request, complete."""
        self._number += 1
        message = form()
        message["cmd"] = command
        message["version"] = VERSION
        message["attrs"] = attributes
        message["header"]["type"] = family
        message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK
        message["header"]["sequence_number"] = self._number
        message.encode()
        return bytes(message.data)

    def ask(self, message: bytes) -> list[bytes]:
        """The kernel's answers before its acknowledgement. It carries the request out before send(2) returns."""
        self._socket.send(message)
        return self.read_answer()

    def read_answer(self) -> list[bytes]:
        """Reads up to the acknowledgement. The answer of an earlier, interrupted request may still be here, too."""
        answers: list[bytes] = []
        while True:
            for kind, number, message in _messages(self._socket.recv(_MAX_DATAGRAM)):
                if number != self._number:
                    continue
                if kind != _NLMSG_ERROR:
                    answers.append(message)
                    continue
                error = -_NLMSGERR.unpack_from(message, _NLMSGHDR.size)[0]
                if error:
                    raise OSError(error, f"netlink: {os.strerror(error)}")
                return answers

    def close(self) -> None:
        self._socket.close()


def _messages(datagram: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence number and bytes of each message in it."""
    while len(datagram) >= _NLMSGHDR.size:
        length, kind, _, number, _ = _NLMSGHDR.unpack_from(datagram)
        yield kind, number, datagram[:length]
        datagram = datagram[max(length + 3 & ~3, _NLMSGHDR.size) :]


class Family:
    """An open socket of the family; for the few requests that belong together. Raises OSError throughout.

    ENOENT at opening: the kernel has no such family here. Times are whole seconds, sizes are bytes, sockets are
    descriptors of this process; the kernel takes its own references to them.
    """

    def __init__(self) -> None:
        self._socket = _Socket()
        try:
            self._number, self._groups = self._found()
        except OSError as error:
            self._socket.close()
            raise OSError(error.errno, "the nbd family") from error
        except BaseException:
            self._socket.close()
            raise

    def _found(self) -> tuple[int, dict[str, int]]:
        """The number of the family, and those of its multicast groups, as the kernel has given them."""
        name = [("CTRL_ATTR_FAMILY_NAME", FAMILY)]
        (data,) = self._socket.ask(self._socket.message(_GENL_ID_CTRL, ctrlmsg, _CTRL_CMD_GETFAMILY, name))
        answer = ctrlmsg(data)
        answer.decode()
        groups = answer.get_attr("CTRL_ATTR_MCAST_GROUPS") or []
        return answer.get_attr("CTRL_ATTR_FAMILY_ID"), {
            group.get_attr("CTRL_ATTR_MCAST_GRP_NAME"): group.get_attr("CTRL_ATTR_MCAST_GRP_ID") for group in groups
        }

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

        Success says nothing about the sockets: the kernel silently drops each one for which it has no dead connection.
        A change of the size waits for all requests in flight, so we never send it together with sockets.
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
        """NBD_CMD_DISCONNECT: requests in flight fail, even if the device is in use. No error if it is not attached."""
        self._request(NBD_CMD_DISCONNECT, [("NBD_ATTR_INDEX", index)])

    def farewell(self, index: int) -> Farewell:
        """The message of `disconnect`, complete, so that sending it takes one system call."""
        return Farewell(self._number, index)

    def dead_links(self) -> DeadLinks:
        """Reports the devices of which a connection dies, from now on."""
        return DeadLinks(self._groups[MULTICAST_GROUP], self._number)

    def _request(self, command: int, attributes: list[tuple[str, Any]]) -> None:
        self._socket.ask(self._socket.message(self._number, _Message, command, attributes))

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
        self._socket = _Socket()
        self.data = self._socket.message(family, _Message, NBD_CMD_DISCONNECT, [("NBD_ATTR_INDEX", index)])

    def fileno(self) -> int:
        """For a process that sends `data` in our place; `read_answer` is called after that."""
        return self._socket.fileno()

    def send(self) -> None:
        """The kernel carries it out before send(2) returns."""
        self._socket.ask(self.data)

    def read_answer(self) -> None:
        """Raises OSError if the kernel has refused the request."""
        self._socket.read_answer()

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
        self._socket = _opened(socket.SOCK_NONBLOCK)
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
