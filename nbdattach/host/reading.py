# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads of an attached device, which may wait for a silent server without end, in a process that can be left behind."""

from __future__ import annotations

import errno
import mmap
import os
import socket
from collections.abc import Sequence

from nbdattach.deadline import Deadline
from nbdattach.host.blocking import Unanswered
from nbdattach.host.copies import Copy
from nbdattach.host.procfs import LOOK

# Bytes that are read at once.
_MAX_PART = 64 << 10
# Bytes of the offset and the length of a part, in decimal.
_MAX_RANGE = 64


class Reading:
    """A device that another process reads, past the page cache, for one look at it. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = Copy(lambda: _read(theirs, path), theirs.fileno(), name=LOOK)

    def read(self, ranges: Sequence[tuple[int, int]], deadline: Deadline) -> list[bytes]:
        """The bytes of each range (offset, length), which are multiples of a block. Raises OSError, `Unanswered`."""
        return [
            b"".join(
                self._part(place, min(_MAX_PART, offset + length - place), deadline)
                for place in range(offset, offset + length, _MAX_PART)
            )
            for offset, length in ranges
        ]

    def _part(self, offset: int, length: int, deadline: Deadline) -> bytes:
        self._channel.settimeout(deadline.remaining() or 0.001)
        try:
            self._channel.send(b"%d %d" % (offset, length))
            answer = self._channel.recv(length + 1)
        except TimeoutError:
            raise Unanswered from None
        if answer[:1] == b"=":
            return answer[1:]
        number = int(answer[1:] or errno.EPIPE)  # no message: it was killed
        raise OSError(number, os.strerror(number))

    def kill(self, seconds: float) -> None:
        """The process ends, unless the server keeps it waiting. May be called by any thread."""
        self._process.kill()
        deadline = Deadline(seconds)
        while not self.ended and deadline.sleep(0.005):
            pass

    @property
    def ended(self) -> bool:
        return self._process.ended

    def close(self) -> None:
        self._channel.close()


def _read(channel: socket.socket, path: str) -> None:
    """Each message is offset and length of a part; the answer is the data, or the errno after an exclamation mark."""
    fd = -1
    while message := channel.recv(_MAX_RANGE):
        try:
            if fd < 0:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            channel.send(b"=" + _part(fd, *map(int, message.split())))
        except OSError as error:
            channel.send(b"!%d" % (error.errno or 1))


def _part(fd: int, offset: int, length: int) -> bytes:
    with mmap.mmap(-1, length) as memory:  # which begins at a page, as O_DIRECT wants it
        return memory[: os.preadv(fd, [memory], offset)]
