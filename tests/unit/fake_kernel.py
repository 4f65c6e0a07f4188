# SPDX-License-Identifier: GPL-2.0-or-later
"""The ioctl half of the kernel's nbd driver, in this process: behaves as `nbdattach.kernel.ioctl` does on /dev/nbdN.

Source: drivers/block/nbd.c of Linux 6.1 (names of functions there are in brackets); BLKROSET and BLKRRPART are of
block/ioctl.c. The sockets are real ones: this driver sends to the server as the real one does, and waits as it
does. No block I/O is done, and no signal ends NBD_DO_IT.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

FLAG_READ_ONLY = 1 << 1
FLAG_CAN_MULTI_CONN = 1 << 8
DEFAULT_BLOCK = 1 << 10  # NBD_DEF_BLKSIZE_BITS
PAGE = 4096
DISCONNECT = struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0)


@dataclass
class _Config:
    """struct nbd_config: from the first open of the device to its last close."""

    socks: list[socket.socket] = field(default_factory=list)
    block_size: int = DEFAULT_BLOCK
    size: int = 0
    flags: int = 0
    disconnected: bool = False
    disconnect_requested: bool = False
    receiving: int = 0


class FakeKernel:
    """One device. Each ioctl is a method with the name, arguments and errors of that function in `kernel.ioctl`.

    `calls` are the calls, in order; a step in `fails` raises the errno it has there, before it does anything.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.fails: dict[str, int] = {}
        self.admin = True
        self.max_part = 16
        self.pid: int | None = None
        self.capacity = 0
        self.read_only = False
        self._lock = threading.Condition()  # config_lock, and recv_wq
        self._task_setup: int | None = None
        self._config: _Config | None = None
        self._nodes: set[int] = set()

    # -- open(2), close(2) and /sys of the real one --------------------------------------------------------------------

    def open(self) -> int:
        """[nbd_open] A descriptor that no other file has."""
        node = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        with self._lock:
            self._nodes.add(node)
            self._config = self._config or _Config()
        return node

    def close(self, node: int) -> None:
        """[nbd_release, nbd_config_put]"""
        with self._lock:
            self._nodes.remove(node)
            if not self._nodes and self._config:
                self._clear_sock(self._config)
                for sock in self._config.socks:
                    sock.close()
                self._config, self.pid, self.capacity = None, None, 0
        os.close(node)

    def close_all(self) -> None:
        for node in list(self._nodes):
            self.close(node)

    @property
    def steps(self) -> list[str]:
        return [step for step, _ in self.calls]

    # -- the ioctls ----------------------------------------------------------------------------------------------------

    def nbd_set_sock(self, fd: int, sock: int) -> None:
        """[nbd_add_socket] The socket is duplicated: the driver holds its own reference."""
        with self._entered("NBD_SET_SOCK", fd, sock) as config:
            ours = _stream_socket(sock)
            task = threading.get_native_id()
            if self._task_setup is None:
                self._task_setup = task
            if self._task_setup != task:
                ours.close()
                raise _error(errno.EBUSY)
            config.socks.append(ours)

    def nbd_set_blksize(self, fd: int, size: int) -> None:
        with self._entered("NBD_SET_BLKSIZE", fd, size) as config:
            self._set_size(config, config.size, size)

    def nbd_set_size_blocks(self, fd: int, blocks: int) -> None:
        with self._entered("NBD_SET_SIZE_BLOCKS", fd, blocks) as config:
            self._set_size(config, blocks * config.block_size, config.block_size)

    def nbd_set_flags(self, fd: int, flags: int) -> None:
        with self._entered("NBD_SET_FLAGS", fd, flags) as config:
            config.flags = flags

    def nbd_do_it(self, fd: int) -> None:
        """[nbd_start_device_ioctl] Until the last connection is gone."""
        with self._entered("NBD_DO_IT", fd) as config:
            self._start(config)
            self._lock.wait_for(lambda: config.receiving == 0)
            self._reset()

    def nbd_disconnect(self, fd: int) -> None:
        """[nbd_disconnect] Says goodbye on every connection; hanging up is the server's part."""
        with self._entered("NBD_DISCONNECT", fd) as config:
            config.disconnect_requested = True
            for sock in config.socks:
                with contextlib.suppress(OSError):
                    sock.sendall(DISCONNECT)

    def nbd_clear_que(self, fd: int) -> None:
        with self._entered("NBD_CLEAR_QUE", fd):
            """Does nothing since long ago."""

    def nbd_clear_sock(self, fd: int) -> None:
        """[nbd_clear_sock_ioctl]"""
        with self._entered("NBD_CLEAR_SOCK", fd) as config:
            self._clear_sock(config)
            self._reset()

    def blkroset(self, fd: int, read_only: bool) -> None:
        with self._entered("BLKROSET", fd, read_only):
            self.read_only = read_only

    def blkrrpart(self, fd: int) -> None:
        with self._entered("BLKRRPART", fd):
            if not self.max_part:
                raise _error(errno.EINVAL)

    # -- their work ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _entered(self, step: str, fd: int, argument: int = 0) -> Iterator[_Config]:
        """[nbd_ioctl]"""
        with self._lock:
            self.calls.append((step, argument))
            if step in self.fails:
                raise _error(self.fails[step])
            if fd not in self._nodes or self._config is None:
                raise _error(errno.EBADF)
            if not self.admin:
                raise _error(errno.EACCES if step.startswith("BLK") else errno.EPERM)
            yield self._config

    def _set_size(self, config: _Config, size: int, block_size: int) -> None:
        """[nbd_set_size] The disk's values change only while it is served."""
        block_size = block_size or DEFAULT_BLOCK
        if block_size < 512 or block_size > PAGE or block_size & (block_size - 1):
            raise _error(errno.EINVAL)
        if not 0 <= size < 1 << 63:
            raise _error(errno.EINVAL)
        config.size, config.block_size = size, block_size
        if self.pid is not None:
            self.capacity = size // 512 * 512

    def _start(self, config: _Config) -> None:
        """[nbd_start_device]"""
        if self.pid is not None:
            raise _error(errno.EBUSY)
        if not config.socks:
            raise _error(errno.EINVAL)
        if len(config.socks) > 1 and not config.flags & FLAG_CAN_MULTI_CONN:
            raise _error(errno.EINVAL)
        self.pid = threading.get_native_id()  # task_pid_nr(current): the thread's, not the process's
        self.read_only = bool(config.flags & FLAG_READ_ONLY)
        for sock in config.socks:
            config.receiving += 1
            threading.Thread(target=self._receive, args=(config, sock), daemon=True).start()
        self._set_size(config, config.size, config.block_size)

    def _receive(self, config: _Config, sock: socket.socket) -> None:
        """[recv_work] No request was sent, so any data is the end of the connection."""
        with contextlib.suppress(OSError):
            sock.recv(1)
        with self._lock:
            _hang_up(sock)
            config.receiving -= 1
            self._lock.notify_all()

    def _clear_sock(self, config: _Config) -> None:
        """[nbd_clear_sock, sock_shutdown]"""
        if config.socks and not config.disconnected:
            config.disconnected = True
            for sock in config.socks:
                _hang_up(sock)
        self._task_setup = None

    def _reset(self) -> None:
        """[nbd_bdev_reset]"""
        if len(self._nodes) == 1:
            self.capacity = 0


def _stream_socket(number: int) -> socket.socket:
    """[nbd_get_socket] Raises EBADF, ENOTSOCK, or EINVAL for a socket that is neither TCP nor a Unix stream."""
    ours = socket.socket(fileno=os.dup(number))
    if ours.type != socket.SOCK_STREAM or ours.family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
        ours.close()
        raise _error(errno.EINVAL)
    return ours


def _hang_up(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
