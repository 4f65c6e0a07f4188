# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads of an attached device, which may wait for a silent server without end, in a process that we can leave behind.

Decision that matters: that process is a copy of this one and runs no program. The system's files may be on a device
whose server is away; the start of a program would wait for that server, with this process in some releases of Python.
It keeps no descriptor but its own: a hanging one must not hold a lock of ours, nor a connection.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from typing import ClassVar

from nbdattach.deadline import Deadline
from nbdattach.host.blocking import Unanswered
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
            self._process = _Copy(lambda: _read(theirs, path), theirs.fileno())

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


class _Copy:
    """A copy of this process that does `work`, and keeps that descriptor only."""

    _all: ClassVar[set[_Copy]] = set()  # that have not ended yet, so that none is left behind as a zombie

    def __init__(self, work: Callable[[], None], descriptor: int) -> None:
        self._ended = False
        self._mutex = threading.Lock()  # the number of a process that has ended may be that of another one
        _Copy._all.difference_update([one for one in list(_Copy._all) if one.ended])
        self._pid = os.fork()
        if not self._pid:
            try:
                _close_all_but(descriptor)
                os.chdir("/")
                _forget_signals()
                work()
            finally:
                os._exit(0)
        _Copy._all.add(self)

    def kill(self) -> None:
        with self._mutex:
            if not self._has_ended():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)

    @property
    def ended(self) -> bool:
        with self._mutex:
            return self._has_ended()

    def _has_ended(self) -> bool:
        try:
            self._ended = self._ended or os.waitpid(self._pid, os.WNOHANG)[0] != 0
        except ChildProcessError:  # it has ended; we were started with SIGCHLD ignored, so the kernel does not keep it
            self._ended = True
        return self._ended


def _close_all_but(descriptor: int) -> None:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of this very list
            if int(name) != descriptor:
                os.close(int(name))


def _forget_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _read(channel: socket.socket, path: str) -> None:
    """Each message is offset and length of a part; the answer is the data, or the errno after an exclamation mark."""
    with open("/proc/self/comm", "w") as name:
        name.write(LOOK)
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
