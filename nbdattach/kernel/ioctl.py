# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver's and the block layer's ioctls: thin functions named as the calls of linux/nbd.h and linux/fs.h.

`fd` is an open /dev/nbdN. Each raises OSError with the kernel's errno. CAP_SYS_ADMIN is needed.
Source of their meaning: drivers/block/nbd.c. Imported by the worker, so it must stay small.
"""

from __future__ import annotations

import fcntl
import sys

from nbdattach.host import syscalls
from nbdattach.kernel import uapi

# fcntl.ioctl parses its argument as a C int; the kernel takes an unsigned long.
_INT_MAX = 2**31 - 1
# Bytes of a C long, which on Linux has the length of a pointer.
_LONG = 8 if sys.maxsize > _INT_MAX else 4


def nbd_set_sock(fd: int, sock: int) -> None:
    """Adds a connection. EBUSY: another task has begun to set the device up."""
    fcntl.ioctl(fd, uapi.NBD_SET_SOCK, sock)


def nbd_set_blksize(fd: int, size: int) -> None:
    """Logical block size in bytes, a power of two from 512 to the page size."""
    fcntl.ioctl(fd, uapi.NBD_SET_BLKSIZE, size)


def nbd_set_size_blocks(fd: int, blocks: int) -> None:
    """Size in blocks of the size set before."""
    if blocks <= _INT_MAX:
        fcntl.ioctl(fd, uapi.NBD_SET_SIZE_BLOCKS, blocks)
    else:
        _libc_ioctl(fd, uapi.NBD_SET_SIZE_BLOCKS, blocks)


def nbd_set_flags(fd: int, flags: int) -> None:
    """Transmission flags of the handshake. ENOTTY: a kernel without this call."""
    fcntl.ioctl(fd, uapi.NBD_SET_FLAGS, flags)


def nbd_set_timeout(fd: int, seconds: int) -> None:
    """The age of a request at which the connection counts as dead; 0 for never."""
    fcntl.ioctl(fd, uapi.NBD_SET_TIMEOUT, seconds)


def nbd_do_it(fd: int) -> None:
    """Serves the device until it is disconnected; any signal ends that. EPIPE: the connection is gone."""
    fcntl.ioctl(fd, uapi.NBD_DO_IT)


def nbd_disconnect(fd: int) -> None:
    """Sends NBD_CMD_DISC on every connection. Allowed on devices of the netlink interface too."""
    fcntl.ioctl(fd, uapi.NBD_DISCONNECT)


def nbd_clear_que(fd: int) -> None:
    """Does nothing on today's kernels; older ones drop the requests that wait."""
    fcntl.ioctl(fd, uapi.NBD_CLEAR_QUE)


def nbd_clear_sock(fd: int) -> None:
    """Shuts the sockets down, fails the requests in flight, and frees the device if there is no other opener."""
    fcntl.ioctl(fd, uapi.NBD_CLEAR_SOCK)


def blkroset(fd: int, read_only: bool) -> None:
    fcntl.ioctl(fd, uapi.BLKROSET, int(read_only).to_bytes(4, sys.byteorder))


def blkrrpart(fd: int) -> None:
    """Reads the partition table again. EINVAL: the kernel allows no partitions there. EBUSY: a partition is open."""
    fcntl.ioctl(fd, uapi.BLKRRPART)


def blkraset(fd: int, sectors: int) -> None:
    """How far the kernel reads ahead, in sectors, as queue/read_ahead_kb has it. It waits for no request, unlike that.

    The kernel rounds it down to whole pages.
    """
    fcntl.ioctl(fd, uapi.BLKRASET, sectors)


def blkraget(fd: int) -> int:
    """How far the kernel reads ahead, in sectors."""
    return int.from_bytes(fcntl.ioctl(fd, uapi.BLKRAGET, bytes(_LONG)), sys.byteorder)


def _libc_ioctl(fd: int, request: int, argument: int) -> None:
    import ctypes

    syscalls.checked(syscalls.libc().ioctl(fd, ctypes.c_ulong(request), ctypes.c_ulong(argument)))
