# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls that Python has no function for: thin, and named as they are. Errors: OSError with the kernel's errno.

The worker imports this module, so it imports next to nothing.
"""

from __future__ import annotations

import fcntl
import os
import sys

TYPE_CHECKING = False  # the module typing costs the worker 1 MB
if TYPE_CHECKING:
    import ctypes

# linux/sockios.h
SIOCOUTQ = 0x5411
# linux/nsfs.h: _IO(0xb7, 1)
NS_GET_USERNS = 0xB701
# linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
PR_SET_IO_FLUSHER = 57
# asm-generic/mman.h
MCL_CURRENT = 1
MCL_FUTURE = 2
MCL_ONFAULT = 4
# linux/fs.h: SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE, _WAIT_AFTER
SYNC_FILE_RANGE_ALL = 1 | 2 | 4


def flock(fd: int) -> None:
    """Locks the file for us alone, until it is closed. EWOULDBLOCK: another process has locked it."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def ofd_read_lock(fd: int, byte: int) -> None:
    """Locks one byte of the file together with other readers, until its last descriptor is closed (fcntl(2)).

    BlockingIOError: another open file has a write lock there.
    """
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, byte))


def ofd_write_lock(fd: int, byte: int) -> None:
    """Locks one byte of the file for us alone, until its last descriptor is closed (fcntl(2)).

    BlockingIOError: another open file has a lock there.
    """
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, byte))


def ofd_is_locked(fd: int, byte: int) -> bool:
    """Whether another open file has any lock of that byte."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, byte))
    return int.from_bytes(answer[:2], sys.byteorder) != fcntl.F_UNLCK


def _flock(kind: int, byte: int) -> bytes:
    """struct flock: l_type, l_whence (and a gap), l_start, l_len, l_pid (and a gap)."""
    fields = ((kind, 2), (os.SEEK_SET, 6), (byte, 8), (1, 8), (0, 8))
    return b"".join(value.to_bytes(length, sys.byteorder) for value, length in fields)


def pr_set_io_flusher() -> None:
    """This process is needed to write pages out: its own allocations must not wait for that (prctl(2))."""
    checked(libc().prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0))


def pr_set_child_subreaper() -> None:
    """Processes whose parent ends become ours, if we have started that parent (prctl(2))."""
    checked(libc().prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def bytes_unread(sock: int) -> int:
    """How much of the data sent over a Unix socket its peer has not read (SIOCOUTQ, unix(7)); not in bytes of data."""
    return int.from_bytes(fcntl.ioctl(sock, SIOCOUTQ, bytes(4)), sys.byteorder)


def reset_connection(sock: int) -> None:
    """Drops a TCP connection, and all that it has not delivered, with an RST: connect(2) to AF_UNSPEC."""
    nowhere = bytes(16)  # struct sockaddr of family AF_UNSPEC
    checked(libc().connect(sock, nowhere, len(nowhere)))


def mlockall() -> None:
    """Locks this process in memory, now and later (mlockall(2))."""
    checked(libc().mlockall(MCL_CURRENT | MCL_FUTURE))


def mlockall_now() -> None:
    """Reads in all memory that this process has mapped now, and locks it; later mappings are not locked."""
    checked(libc().mlockall(MCL_CURRENT))


def mlockall_on_fault() -> None:
    """As mlockall, but locks only memory that has been in use at some time, which is less."""
    checked(libc().mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT))


def sync_file_range(fd: int) -> None:
    """Writes back all dirty pages, and waits for that; no cache of the device is flushed (sync_file_range(2))."""
    import ctypes

    everything = ctypes.c_longlong(0)  # from 0, as far as it goes
    checked(libc().sync_file_range(fd, everything, everything, SYNC_FILE_RANGE_ALL))


def ns_get_userns(fd: int) -> int:
    """A descriptor of the user namespace that owns this namespace. EPERM: it is above ours."""
    return fcntl.ioctl(fd, NS_GET_USERNS)


def pidfd_getfd(pidfd: int, number: int) -> int:
    """A duplicate of a descriptor of the process (pidfd_getfd(2), Linux 5.6; it has this number everywhere)."""
    return checked(libc().syscall(438, pidfd, number, 0))


def libc() -> ctypes.CDLL:
    """With errno kept for `checked`."""
    import ctypes  # 0.7 MB, which most workers do without

    return ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> int:
    """The result of a call of a `libc` function. Raises OSError if it has failed."""
    import ctypes

    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result
