# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's generic netlink family "nbd": its requests.

Commands, attributes and their types are those of include/uapi/linux/nbd-netlink.h; the code behind each command is in
drivers/block/nbd.c (nbd_genl_connect, nbd_genl_reconfigure, nbd_genl_disconnect).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType

from nbdattach.kernel.genetlink import Asking, nested, text, u32, u64

FAMILY = "nbd"
MULTICAST_GROUP = "nbd_mc_group"

NBD_CMD_CONNECT = 1
NBD_CMD_DISCONNECT = 2
NBD_CMD_RECONFIGURE = 3
NBD_CMD_LINK_DEAD = 4

# linux/nbd.h, as bits: the kernel disconnects the device when the last opener closes it.
NBD_CFLAG_DISCONNECT_ON_CLOSE = 1 << 1

_INDEX = 1  # NBD_ATTR_*
_SIZE_BYTES = 2
_BLOCK_SIZE_BYTES = 3
_TIMEOUT = 4
_SERVER_FLAGS = 5
_CLIENT_FLAGS = 6
_SOCKETS = 7
_DEAD_CONN_TIMEOUT = 8
_BACKEND_IDENTIFIER = 10
_SOCK_ITEM = 1
_SOCK_FD = 1


def _sockets(numbers: Sequence[int]) -> bytes:
    return nested(_SOCKETS, (nested(_SOCK_ITEM, [u32(_SOCK_FD, number)]) for number in numbers))


class Family:
    """An open socket of the family; for the few requests that belong together. Raises OSError throughout.

    `number` is the family's, `groups` has those of its multicast groups, as the kernel has given them.
    ENOENT at opening: the kernel has no such family here. Times are whole seconds, sizes are bytes, sockets are
    descriptors of this process; the kernel takes its own references to them.
    """

    def __init__(self) -> None:
        self._socket = Asking()
        try:
            self.number, self.groups = self._socket.family(FAMILY)
        except OSError as error:
            self._socket.close()
            raise OSError(error.errno, "the nbd family") from error
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
        attributes = [
            u32(_INDEX, index),
            u64(_SIZE_BYTES, size),
            u64(_BLOCK_SIZE_BYTES, block_size),
            u64(_SERVER_FLAGS, flags),
            u64(_CLIENT_FLAGS, client_flags),
            u64(_DEAD_CONN_TIMEOUT, dead_conn_timeout),
            _sockets(sockets),
            text(_BACKEND_IDENTIFIER, backend),
        ]
        if timeout:
            attributes.append(u64(_TIMEOUT, timeout))
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
        attributes = [u32(_INDEX, index), text(_BACKEND_IDENTIFIER, backend)]
        for number, value in (
            (_SIZE_BYTES, size),
            (_TIMEOUT, timeout),
            (_DEAD_CONN_TIMEOUT, dead_conn_timeout),
            (_CLIENT_FLAGS, client_flags),
        ):
            if value is not None:
                attributes.append(u64(number, value))
        if sockets:
            attributes.append(_sockets(sockets))
        self._request(NBD_CMD_RECONFIGURE, attributes)

    def disconnect(self, index: int) -> None:
        """NBD_CMD_DISCONNECT: requests in flight fail, even if the device is in use. No error if it is not attached."""
        self._request(NBD_CMD_DISCONNECT, [u32(_INDEX, index)])

    def farewell(self, index: int) -> Farewell:
        """The message of `disconnect`, complete, so that sending it takes one system call."""
        return Farewell(self.number, index)

    def _request(self, command: int, attributes: Iterable[bytes]) -> None:
        self._socket.ask(self._socket.message(self.number, command, attributes))

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
        self._socket = Asking()
        self.data = self._socket.message(family, NBD_CMD_DISCONNECT, [u32(_INDEX, index)])

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
