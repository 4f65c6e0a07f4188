# SPDX-License-Identifier: GPL-2.0-or-later
"""Generic netlink as far as a request to one family needs it: messages of attributes, and a socket that asks.

Formats: include/uapi/linux/netlink.h (nlmsghdr, nlattr, nlmsgerr) and genetlink.h (genlmsghdr, CTRL_*), in the byte
order of the machine.

Why by hand: a command sends two or three messages of a few numbers. The import of pyroute2's one module that makes them
takes as long as the whole of such a command's work, and its sockets three times that again. The tests hold each message
byte for byte against pyroute2's; what the kernel sends unasked is read by pyroute2 (`dead_links`), in the monitor.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator

_NETLINK_GENERIC = 16
MAX_DATAGRAM = 1 << 16
# Length, type, flags, sequence number, port.
_NLMSGHDR = struct.Struct("=IHHII")
# Command, version, reserved.
_GENLMSGHDR = struct.Struct("=BBH")
# Length without the padding, type.
_NLATTR = struct.Struct("=HH")
# The error behind the header of an NLMSG_ERROR; 0 acknowledges.
_NLMSGERR = struct.Struct("=i")
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_NLMSG_ERROR = 2
_VERSION = 1
_NESTED = 0x8000  # NLA_F_NESTED, which the kernel may set
_GENL_ID_CTRL = 16
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME, _CTRL_ATTR_MCAST_GROUPS = 1, 2, 7
_CTRL_ATTR_MCAST_GRP_NAME, _CTRL_ATTR_MCAST_GRP_ID = 1, 2


def attribute(number: int, data: bytes) -> bytes:
    """Its length, its number, the data padded to four bytes."""
    return _NLATTR.pack(_NLATTR.size + len(data), number) + data + bytes(-len(data) % 4)


def u32(number: int, value: int) -> bytes:
    return attribute(number, struct.pack("=I", value))


def u64(number: int, value: int) -> bytes:
    return attribute(number, struct.pack("=Q", value))


def text(number: int, value: str) -> bytes:
    """As UTF-8."""
    return attribute(number, value.encode() + b"\0")


def nested(number: int, attributes: Iterable[bytes]) -> bytes:
    return attribute(number, b"".join(attributes))


def opened(flags: int = 0) -> socket.socket:
    """A socket that the kernel has given a port. Raises OSError."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | flags, _NETLINK_GENERIC)
    made.bind((0, 0))
    return made


class Asking:
    """A socket on which a request gets its answer. Raises OSError throughout."""

    def __init__(self) -> None:
        self._socket = opened()
        self._number = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def message(self, family: int, command: int, attributes: Iterable[bytes]) -> bytes:
        """The next request, complete."""
        self._number += 1
        data = b"".join((_GENLMSGHDR.pack(command, _VERSION, 0), *attributes))
        flags = _NLM_F_REQUEST | _NLM_F_ACK
        return _NLMSGHDR.pack(_NLMSGHDR.size + len(data), family, flags, self._number, 0) + data

    def ask(self, message: bytes) -> list[bytes]:
        """The kernel's answers before its acknowledgement. It carries the request out before send(2) returns."""
        self._socket.send(message)
        return self.read_answer()

    def read_answer(self) -> list[bytes]:
        """Reads up to the acknowledgement. The answer of an earlier, interrupted request may still be here, too."""
        answers: list[bytes] = []
        while True:
            for kind, number, message in _messages(self._socket.recv(MAX_DATAGRAM)):
                if number != self._number:
                    continue
                if kind != _NLMSG_ERROR:
                    answers.append(message)
                    continue
                error = -_NLMSGERR.unpack_from(message, _NLMSGHDR.size)[0]
                if error:
                    raise OSError(error, f"netlink: {os.strerror(error)}")
                return answers

    def family(self, name: str) -> tuple[int, dict[str, int]]:
        """The number of the family, and those of its multicast groups, as the kernel has given them. Raises ENOENT."""
        (answer,) = self.ask(self.message(_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, [text(_CTRL_ATTR_FAMILY_NAME, name)]))
        told = _attributes(answer[_NLMSGHDR.size + _GENLMSGHDR.size :])
        groups = {}
        for group in _attributes(told.get(_CTRL_ATTR_MCAST_GROUPS, b"")).values():
            its = _attributes(group)
            title = its[_CTRL_ATTR_MCAST_GRP_NAME].rstrip(b"\0").decode(errors="replace")
            (groups[title],) = struct.unpack("=I", its[_CTRL_ATTR_MCAST_GRP_ID])
        return struct.unpack("=H", told[_CTRL_ATTR_FAMILY_ID])[0], groups

    def close(self) -> None:
        self._socket.close()


def _messages(datagram: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence number and bytes of each message in it."""
    while len(datagram) >= _NLMSGHDR.size:
        length, kind, _, number, _ = _NLMSGHDR.unpack_from(datagram)
        yield kind, number, datagram[:length]
        datagram = datagram[max(_padded(length), _NLMSGHDR.size) :]


def _attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in `data`, by their numbers."""
    found = {}
    while len(data) >= _NLATTR.size:
        length, number = _NLATTR.unpack_from(data)
        found[number & ~_NESTED] = data[_NLATTR.size : length]
        data = data[max(_padded(length), _NLATTR.size) :]
    return found


def _padded(length: int) -> int:
    return length + 3 & ~3
