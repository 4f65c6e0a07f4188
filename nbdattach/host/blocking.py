# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls that may wait for a silent server without end, each in a process that this one can leave behind.

A thread would not do: a process cannot end while one of its threads is in such a call.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Sequence

from nbdattach.deadline import Deadline
from nbdattach.host.spawn import bare_python, start_aside

# Bytes of a message of `blocking_child.open_main`: an errno in decimal.
_MAX_MESSAGE = 16
# For a process that has nothing left to do.
_END_SECONDS = 5.0


class Unanswered(Exception):
    """The server did not answer a request of the kernel before the deadline."""


class Opening:
    """Paths that another process opens. With O_EXCL in `flags` the claim comes with the descriptor.

    The claim belongs to the open file, so it lasts until the last descriptor of that file is closed, in any process.
    """

    def __init__(self, flags: int, *paths: str) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = _child("open_main", [theirs.fileno()], str(theirs.fileno()), str(flags), *paths)

    def next(self, deadline: Deadline) -> int:
        """The descriptor of the next path. Raises OSError as open(2) does; after `Unanswered` it may be asked again."""
        self._channel.settimeout(deadline.remaining() or 0.001)
        try:
            message, descriptors, _, _ = socket.recv_fds(self._channel, _MAX_MESSAGE, 1)
        except TimeoutError:
            raise Unanswered from None
        if descriptors:
            os.set_inheritable(descriptors[0], False)
            return descriptors[0]
        number = int(message or self._process.wait() or 1)  # no message: the interpreter itself failed
        raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """If a descriptor comes later, the kernel closes it."""
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0)

    def __enter__(self) -> Opening:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WriteBack:
    """Writes the dirty pages of block devices to their server, in a process that is ready once this is made.

    The server may keep them in a cache of its own: a flush is another thing. Without dirty pages it does nothing.
    """

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            numbers = [theirs.fileno(), *descriptors]
            self._process = _child("write_back_main", numbers, *map(str, numbers))
        self._channel.recv(_MAX_MESSAGE)

    def run(self, deadline: Deadline) -> None:
        """Raises OSError, `Unanswered`."""
        self._channel.settimeout(deadline.remaining() or 0.001)
        try:
            self._channel.send(b"!")
            number = int(self._channel.recv(_MAX_MESSAGE) or self._process.wait() or 1)
        except TimeoutError:
            raise Unanswered from None
        if number:
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """Its descriptors are closed, too, unless a server keeps it waiting."""
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)

    def __enter__(self) -> WriteBack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sending:
    """A message that another process sends over a netlink socket of ours."""

    def __init__(self, sock: int, message: bytes) -> None:
        self._process = _child("send_main", [sock], str(sock), message.hex())

    def wait(self, deadline: Deadline) -> None:
        """Until the kernel has carried it out. Raises OSError, and `Unanswered`; then it may be called again."""
        _finish(self._process, deadline)


def _child(function: str, descriptors: Sequence[int], *arguments: str) -> subprocess.Popen[bytes]:
    return start_aside(bare_python("host.blocking_child", function, *arguments), descriptors)


def _finish(process: subprocess.Popen[bytes], deadline: Deadline) -> None:
    try:
        number = process.wait(deadline.remaining())
    except subprocess.TimeoutExpired:
        raise Unanswered from None
    if number:
        raise OSError(abs(number), os.strerror(abs(number)))
