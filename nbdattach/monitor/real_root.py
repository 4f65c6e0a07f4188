# SPDX-License-Identifier: GPL-2.0-or-later
"""The real root file system, as a process of the initramfs finds it.

The initramfs's interim monitor runs until the real system's monitor takes over. It needs the /sys and /run that all
other processes see by then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from nbdattach.kernel import sysfs

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class RealRoot:
    """The root that an initramfs mounts and switches to, found by a process that was started before the switch.

    Such a process keeps the root of the initramfs, which is empty after the switch. initramfs-tools and older systemd
    move /run to the real root, so that /run/.. is the real root. Newer systemd (257) mounts /run there a second time
    and detaches the mount of the initramfs: then /run/.. is /run itself, but process 1 has changed its root.
    """

    def __init__(self) -> None:
        self._run = os.open("/run", _FOLDER)
        self._proc = os.open("/proc", _FOLDER)

    def follow(self) -> None:
        """Changes our root to the real root, once /run and /sys have moved there.

        Not sooner: if /sys is not mounted there yet, a look for it reads the root's own folder from a disk that may be
        away.
        """
        if self._is_in_place() or sysfs.is_there():
            return
        with _opened("..", self._run) as above:
            if not os.path.samestat(os.fstat(above), os.fstat(self._run)):
                _enter(above)
                return
        with _opened("1/root", self._proc) as root:
            _enter(root)  # still our own root, as long as process 1 has not changed its root

    def _is_in_place(self) -> bool:
        """Compares the folder itself: files in it prove nothing, because they may be made anew in the old /run."""
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
