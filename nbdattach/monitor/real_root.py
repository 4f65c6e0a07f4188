# SPDX-License-Identifier: GPL-2.0-or-later
"""The real root file system, as a process of the initramfs finds it.

The monitor that stands in until the real one is loaded needs /sys and /run where everybody has them then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from nbdattach.kernel import sysfs

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class RealRoot:
    """What an initramfs has mounted, seen by a process that was started before it became the root of everybody else.

    Such a process keeps the root of the initramfs, where nothing is left then. initramfs-tools and older systemd move
    /run to the real root, so that what is above it there is that root. Newer systemd (257) mounts it there once more
    and detaches what the initramfs had: then nothing is above it, but the first process has changed its root.
    """

    def __init__(self) -> None:
        self._run = os.open("/run", _FOLDER)
        self._proc = os.open("/proc", _FOLDER)

    def follow(self) -> None:
        """Goes there, once all that we look at has moved.

        Not sooner: to look for /sys where it is not yet is to read the root's own folder, from a disk that may be away.
        """
        if self._is_in_place() or sysfs.is_there():
            return
        with _opened("..", self._run) as above:
            if not os.path.samestat(os.fstat(above), os.fstat(self._run)):
                _enter(above)
                return
        with _opened("1/root", self._proc) as root:
            _enter(root)  # our own once more, as long as the first process has not changed

    def _is_in_place(self) -> bool:
        """By the folder itself: what it had in it may have been made anew, in the one that is left behind."""
        try:
            return os.path.samestat(os.stat("/run"), os.fstat(self._run))
        except OSError:
            return False


@contextlib.contextmanager
def _opened(path: str, folder: int) -> Iterator[int]:
    number = os.open(path, _FOLDER, dir_fd=folder)
    try:
        yield number
    finally:
        os.close(number)


def _enter(folder: int) -> None:
    os.fchdir(folder)
    os.chroot(".")
