# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls in which the kernel may wait for a silent server without end, and which no signal interrupts.

Each runs in a bare interpreter as a process of its own, so that the command that needs the result can give up and exit.
`blocking` starts these processes. This module must stay small, because a command waits for its import.
"""

from __future__ import annotations

import _socket
import os
import sys

from nbdattach.host import syscalls

TYPE_CHECKING = False  # the module typing costs 1 MB
if TYPE_CHECKING:
    from collections.abc import Sequence


def open_main(arguments: Sequence[str]) -> None:
    """Opens each path and passes its descriptor on, with a message "0", or a message with the errno instead.

    Arguments: the socket for the messages, the flags of open(2), and the paths.
    """
    channel = _socket.socket(fileno=int(arguments[0]))
    for path in arguments[2:]:
        try:
            fd = os.open(path, int(arguments[1]) | os.O_CLOEXEC)
        except OSError as error:
            channel.send(b"%d" % (error.errno or 0))
            continue
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))
        channel.sendmsg([b"0"], [rights])
        os.close(fd)


def write_back_main(arguments: Sequence[str]) -> None:
    """At each message, writes the dirty pages of these descriptors to the server, and answers with the first errno.

    Arguments: the socket for the messages, and the descriptors. A first answer says that this process is ready.
    """
    channel, failed = _socket.socket(fileno=int(arguments[0])), 0
    channel.send(b"%d" % failed)
    while channel.recv(1):
        for number in map(int, arguments[1:]):
            try:
                syscalls.sync_file_range(number)
            except OSError as error:
                failed = failed or error.errno or 1
        channel.send(b"%d" % failed)
        failed = 0


def send_main(arguments: Sequence[str]) -> None:
    """Sends a netlink message, which the kernel carries out before send(2) returns. Exits with the errno.

    Arguments: the netlink socket, and the message in hexadecimal.
    """
    try:
        _socket.socket(fileno=int(arguments[0])).send(bytes.fromhex(arguments[1]))
    except OSError as error:
        sys.exit(error.errno or 1)
