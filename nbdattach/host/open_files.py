# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that have a block device open or mapped, or a file on its file system; from /proc.

A look at descriptors never waits. A look at mappings does: the kernel takes the lock of the process's memory for it. A
program that has mapped a file of a dead disk, and has several threads, may hold that lock as long as the disk is dead.
So threads of ours look there (`looks`); of a process that does not answer, nothing is known.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection

from nbdattach.host import copies, procfs
from nbdattach.host.looks import look_at
from nbdattach.host.procfs import Opener

# For Opener.fd: it has mapped the device; its memory is locked, so it is not known whether it has.
MAPPED, HIDDEN = -2, -3
# Lines of maps (proc_pid_maps(5)) of shared mappings of files with a path: others do not write to a device.
# The place in memory, and the file: its device, inode and path.
_SHARED = re.compile(rb"^([0-9a-f]+-[0-9a-f]+) ...s [0-9a-f]+ (\S+ \d+ +/.*)$", re.MULTILINE)


def openers(numbers: set[str], others: Collection[int] = (), own_fds: Collection[int] = ()) -> list[Opener]:
    """Processes that have one of these block devices (major:minor) open now, except `others` and our `own_fds`.

    Also, as `HIDDEN`, those that do not show now whether they have mapped one. Without root we see only our own user's
    processes; processes of other pid namespaces beside ours never. Raises `KernelRefused` if we cannot look at all.
    """
    processes, found = [_Files(pid) for pid in procfs.pids() if pid not in others], []
    for files in processes:
        ours = own_fds if files.pid == os.getpid() else ()
        for fd in files.descriptors():
            if fd not in ours and files.has_open(fd, numbers):
                found.append(Opener(files.pid, procfs.name_of(files.pid), fd))
    mapped, hidden = look_at(processes, lambda files: files.maps(numbers))
    for fd, some in ((MAPPED, mapped), (HIDDEN, hidden)):
        found += [Opener(files.pid, procfs.name_of(files.pid), fd) for files in some]
    return found


def inside(numbers: set[str], seconds: float) -> list[Opener]:
    """Processes with an open file, or their working directory, on a file system of one of these block devices.

    Unlike mounts, these also show a file system that was unmounted lazily. None of them if the kernel does not answer
    in time: a file may be on a server that is away.
    """

    def look() -> str:
        return " ".join(str(pid) for pid in procfs.pids() if _is_inside(pid, numbers))

    answer = copies.answer_within(seconds, look)
    return [Opener(int(pid), procfs.name_of(int(pid))) for pid in (answer or "").split()]


def _is_inside(pid: int, numbers: set[str]) -> bool:
    files = _Files(pid)
    links = ("cwd", "root", "exe", *(f"fd/{fd}" for fd in files.descriptors()))
    return any(files.is_on(link, numbers) for link in links)


def lock_holder(path: str, byte: int) -> Opener | None:
    """The process that holds a lock on that byte of the file (fdinfo of proc(5)); None if it cannot be seen."""
    place = os.path.realpath(path)
    for pid in procfs.pids():
        for fd in _Files(pid).descriptors():
            with contextlib.suppress(OSError):
                if os.readlink(f"{procfs.PROC}/{pid}/fd/{fd}") == place and byte in _locked_bytes(pid, fd):
                    return Opener(pid, procfs.name_of(pid), fd)
    return None


def _locked_bytes(pid: int, fd: int) -> list[int]:
    """The first byte of each lock: "lock: 1: OFDLCK ADVISORY WRITE -1 00:1a:5 4096 4096"."""
    locks = (line.split() for line in procfs.lines(f"{pid}/fdinfo/{fd}") if line.startswith("lock:"))
    return [int(fields[-2]) for fields in locks if len(fields) > 8]


def has_open(pid: int, numbers: set[str]) -> bool:
    """Whether the process has one of these block devices open; in doubt, as without root, whether it is alive."""
    if not procfs.alive(pid):
        return False
    try:
        os.listdir(f"{procfs.PROC}/{pid}/fd")
    except OSError:
        return True
    files = _Files(pid)
    return any(files.has_open(fd, numbers) for fd in files.descriptors())


def still_open(pid: int, fd: int, numbers: set[str]) -> bool:
    """Whether that descriptor of the process is one of these block devices, not opened with O_PATH.

    `MAPPED` instead of a descriptor: whether it maps one of them, as far as it shows that now.
    """
    if fd != MAPPED:
        return _Files(pid).has_open(fd, numbers)
    return any(look_at([_Files(pid)], lambda files: files.maps(numbers)))


class _Files:
    """The open files of a process. There may be thousands, so what they have in common is read once."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._folder = f"{pid}/"  # below /proc
        self._remote: tuple[str, ...] | None = None

    def descriptors(self) -> list[int]:
        names = procfs.names(f"{procfs.PROC}/{self._folder}fd")
        if not names and self._go_to_another_thread():
            names = procfs.names(f"{procfs.PROC}/{self._folder}fd")
        return [int(name) for name in names]

    def name(self, fd: int) -> str:
        """Where it leads (proc_pid_fd(5)); empty if it was closed."""
        try:
            return os.readlink(f"{procfs.PROC}/{self._folder}fd/{fd}")
        except OSError:
            return self.name(fd) if self._go_to_another_thread() else ""

    def _go_to_another_thread(self) -> bool:
        """If the first thread has ended, only the others show the descriptors of the process."""
        pid = str(self.pid)
        tasks = f"{pid}/task"
        if self._folder.startswith(tasks) or not procfs.has_other_threads(pid):
            return False
        others = [name for name in procfs.names(f"{procfs.PROC}/{tasks}") if name != pid]
        if not others or procfs.alive(self.pid):
            return False
        self._folder = f"{tasks}/{others[0]}/"
        return True

    def has_open(self, fd: int, numbers: set[str]) -> bool:
        """Whether it is one of these block devices, not opened with O_PATH."""
        path = self.name(fd)
        if path[:1] != "/" or not self._is_one(path, f"fd/{fd}", numbers):  # a server may have thousands of sockets
            return False
        flags = [line.split()[1] for line in procfs.lines(f"{self._folder}fdinfo/{fd}") if line.startswith("flags:")]
        return not (flags and int(flags[0], 8) & os.O_PATH)

    def maps(self, numbers: set[str]) -> bool:
        """Whether it has one of these block devices in its memory. A mapping stays after the descriptor was closed.

        The kernel shows the file behind a mapping to root alone.
        """
        try:
            with open(f"{procfs.PROC}/{self._folder}maps", "rb") as file:
                shared = _SHARED.findall(file.read())
        except OSError:
            return False
        places = {file: place for place, file in shared}.values()  # a database has some thousand mappings of a file
        links = (f"map_files/{os.fsdecode(place)}" for place in places)
        # By the link, because maps does not write a path as it is: a line feed in it becomes \012.
        return any(self._is_one(procfs.link(f"{procfs.PROC}/{self._folder}{link}"), link, numbers) for link in links)

    def is_on(self, link: str, numbers: set[str]) -> bool:
        """Whether the file of that link in its folder of /proc is on a file system of one of these block devices."""
        place = f"{procfs.PROC}/{self._folder}{link}"
        with contextlib.suppress(OSError):
            number = os.stat(place).st_dev if self._is_near(procfs.link(place)) else 0
            return procfs.major_minor(number) in numbers
        return False

    def _is_one(self, path: str, link: str, numbers: set[str]) -> bool:
        """Whether the file of that path, and of that link in its folder of /proc, is one of these block devices."""
        return self._is_near(path) and procfs.number_of(f"{procfs.PROC}/{self._folder}{link}") in numbers

    def _is_near(self, path: str) -> bool:
        """Whether stat() of that file waits for no server."""
        if not path.startswith("/"):
            return False
        if self._remote is None:
            self._remote = procfs.remote_places("self") + procfs.remote_places(str(self.pid))
        return not path.startswith(self._remote)


def sockets_of(pid: int) -> dict[int, str]:
    """Descriptors of the process that are sockets, with a name for each socket ("socket:[4711]", proc(5))."""
    files = _Files(pid)
    names = ((fd, files.name(fd)) for fd in files.descriptors())
    return {fd: name for fd, name in names if name.startswith("socket:")}
