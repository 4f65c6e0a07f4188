"""The real root file system, as a process of the initramfs finds it.

The monitor that stands in until the real one is loaded needs /sys and /run where everybody has them then.
"""

from __future__ import annotations

import os

from nbdattach import sysfs


class RealRoot:
    """What an initramfs has mounted, seen by a process that was started before it became the root of everybody else.

    Such a process keeps the root of the initramfs, where nothing is left then. But /run has moved to the real root, and
    what is above it there is that root.
    """

    def __init__(self) -> None:
        self._run = os.open("/run", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def follow(self) -> None:
        """Goes there, once all that we look at has moved.

        Not sooner: to look for /sys where it is not yet is to read the root's own folder, from a disk that may be away.
        """
        if not self._is_in_place() and not sysfs.is_there():
            os.fchdir(self._run)
            os.chdir("..")
            os.chroot(".")

    def _is_in_place(self) -> bool:
        """By the folder itself: what it had in it may have been made anew, in the one that is left behind."""
        try:
            return os.path.samestat(os.stat("/run"), os.fstat(self._run))
        except OSError:
            return False
