# SPDX-License-Identifier: GPL-2.0-or-later
"""The one door to ioctl(2) and its kin: thin functions named as the calls of linux/nbd.h and linux/fs.h.

`fd` is an open /dev/nbdN. Each raises OSError with the kernel's errno. CAP_SYS_ADMIN is needed.
Source of their meaning: drivers/block/nbd.c. Imported by the worker, so it must stay small.
"""

from __future__ import annotations

import fcntl
import os
import sys

from nbdattach import uapi

TYPE_CHECKING = False  # the module typing costs the worker 1 MB
if TYPE_CHECKING:
    import ctypes

# fcntl.ioctl parses its argument as a C int; the kernel takes an unsigned long.
_INT_MAX = 2**31 - 1


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
    """Shuts the sockets down, fails what is in flight, and frees the device if nobody else has it open."""
    fcntl.ioctl(fd, uapi.NBD_CLEAR_SOCK)


def blkroset(fd: int, read_only: bool) -> None:
    fcntl.ioctl(fd, uapi.BLKROSET, int(read_only).to_bytes(4, sys.byteorder))


def blkrrpart(fd: int) -> None:
    """Reads the partition table again. EINVAL: the module was loaded with max_part=0. EBUSY: a partition is open."""
    fcntl.ioctl(fd, uapi.BLKRRPART)


def flock(fd: int) -> None:
    """Locks the file for us alone, until it is closed. EWOULDBLOCK: another process has locked it."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def pr_set_io_flusher() -> None:
    """This process is needed to write pages out: its own allocations must not wait for that (prctl(2))."""
    _checked(_libc().prctl(uapi.PR_SET_IO_FLUSHER, 1, 0, 0, 0))


def bytes_unread(sock: int) -> int:
    """What was sent over a Unix socket, and its peer has not taken yet (SIOCOUTQ, unix(7)); not in bytes of data."""
    return int.from_bytes(fcntl.ioctl(sock, uapi.SIOCOUTQ, bytes(4)), sys.byteorder)


def reset_connection(sock: int) -> None:
    """Drops a TCP connection, and all that it has not delivered, with an RST: connect(2) to AF_UNSPEC."""
    nowhere = bytes(16)  # struct sockaddr of family AF_UNSPEC
    _checked(_libc().connect(sock, nowhere, len(nowhere)))


def mlockall() -> None:
    """Locks this process in memory, now and later (mlockall(2))."""
    _checked(_libc().mlockall(uapi.MCL_CURRENT | uapi.MCL_FUTURE))


def mlockall_now() -> None:
    """Reads all in that this process has mapped now, and locks it; nothing of what comes later."""
    _checked(_libc().mlockall(uapi.MCL_CURRENT))


def mlockall_on_fault() -> None:
    """As mlockall, but only what has been in use at some time, which is less."""
    _checked(_libc().mlockall(uapi.MCL_CURRENT | uapi.MCL_FUTURE | uapi.MCL_ONFAULT))


def sync_file_range(fd: int) -> None:
    """Writes back all dirty pages, and waits for that; no cache of the device is flushed (sync_file_range(2))."""
    import ctypes

    everything = ctypes.c_longlong(0)  # from 0, as far as it goes
    _checked(_libc().sync_file_range(fd, everything, everything, uapi.SYNC_FILE_RANGE_ALL))


def ns_get_userns(fd: int) -> int:
    """A descriptor of the user namespace that owns this namespace. EPERM: it is above ours."""
    return fcntl.ioctl(fd, uapi.NS_GET_USERNS)


def _libc_ioctl(fd: int, request: int, argument: int) -> None:
    import ctypes

    _checked(_libc().ioctl(fd, ctypes.c_ulong(request), ctypes.c_ulong(argument)))


def _libc() -> ctypes.CDLL:
    import ctypes  # 0.7 MB, which most workers do without

    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    import ctypes

    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
