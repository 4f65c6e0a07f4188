# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls that may wait for a silent server without end, each in a process that this one can leave behind.

A thread would not do: a process cannot end while one of its threads is in such a call.
"""

from __future__ import annotations

import errno
import os
import socket
from functools import partial

from nbdattach.deadline import Deadline
from nbdattach.host import blocking_child, syscalls
from nbdattach.host.copies import Copy

# Bytes of a message of `blocking_child`: an errno in decimal.
_MAX_MESSAGE = 16
_NAME = "nbdattach-io"
# For a process that has nothing left to do.
_END_SECONDS = 5.0


class Unanswered(Exception):
    """The server did not answer a request of the kernel before the deadline."""


class Killed(Exception):
    """The process was killed before it wrote anything, so the kernel has told it nothing that we do not know."""


class Opening:
    """A path that another process opens. With O_EXCL in `flags` the claim comes with the descriptor.

    The claim belongs to the open file, so it lasts until the last descriptor of that file is closed, in any process.
    """

    def __init__(self, flags: int, path: str) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            work = partial(blocking_child.open_path, theirs, flags, path)
            self._process = Copy(work, theirs.fileno(), name=_NAME)

    def wait(self, deadline: Deadline) -> int:
        """The descriptor. Raises OSError as open(2) does, `Killed`, and `Unanswered`; then it may be called again."""
        self._channel.settimeout(deadline.remaining() or 0.001)
        try:
            _, descriptors, _, _ = socket.recv_fds(self._channel, _MAX_MESSAGE, 1)
        except TimeoutError:
            raise Unanswered from None
        if descriptors:
            os.set_inheritable(descriptors[0], False)
            return descriptors[0]
        code = self._process.wait() or errno.EMFILE  # it has opened it, and this process had no room for it
        if code < 0:
            raise Killed
        raise OSError(code, os.strerror(code))

    def close(self) -> None:
        """If a descriptor comes later, the kernel closes it."""
        self._channel.close()

    def __enter__(self) -> Opening:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WriteBack:
    """A process that has block devices open and writes their dirty pages to the server, each time that it is asked.

    The server may keep them in a cache of its own: a flush is another thing. Without dirty pages it does nothing.
    """

    def __init__(self, *paths: str) -> None:
        """Of the paths, only the first one has to exist."""
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._owes, self._has_opened = True, False  # it owes an answer
        with theirs:
            syscalls.libc()  # which the copy needs, and must not import
            work = partial(blocking_child.write_back, theirs, paths)
            self._process = Copy(work, theirs.fileno(), name=_NAME)

    @property
    def pid(self) -> int:
        return self._process.pid

    def open(self, deadline: Deadline) -> None:
        """Waits until all are open. Raises OSError as open(2) does, `Killed`, `Unanswered`."""
        if self._owes:
            self._answer(deadline)

    def run(self, deadline: Deadline) -> None:
        """Raises OSError, `Killed`, and `Unanswered`; then it may be called again."""
        self.open(deadline)  # an answer that came too late is not that to our question, but its error counts
        try:
            self._channel.send(b"!")
        except BrokenPipeError:
            raise Killed from None
        self._owes = True
        self._answer(deadline)

    def _answer(self, deadline: Deadline) -> None:
        self._channel.settimeout(deadline.remaining() or 0.001)
        try:
            message = self._channel.recv(_MAX_MESSAGE)
        except TimeoutError:
            raise Unanswered from None
        except ConnectionResetError:  # it has not even read our question
            self._owes = False
            raise Killed from None
        self._owes = False
        if not (message or self._has_opened):
            raise Killed
        self._has_opened = True
        number = int(message or errno.EINTR)  # no message: it was killed, perhaps with an error
        if number:
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """Its descriptors are closed, too, unless a server keeps it waiting."""
        self._channel.close()
        if self._has_opened:  # otherwise a server keeps it waiting, and it ends when that lets it go on
            self._process.wait(_END_SECONDS)

    def __enter__(self) -> WriteBack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sending:
    """A message that another process sends over a netlink socket of ours."""

    def __init__(self, sock: int, message: bytes) -> None:
        self._process = Copy(lambda: os.write(sock, message) and 0, sock, name=_NAME)

    def wait(self, deadline: Deadline) -> None:
        """Until the kernel has carried it out. Raises OSError, and `Unanswered`; then it may be called again."""
        number = self._process.wait(deadline.remaining())
        if number is None:
            raise Unanswered
        if number:
            raise OSError(abs(number), os.strerror(abs(number)))
