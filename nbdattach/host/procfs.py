# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes, from /proc: their identity, their open files and mounts; and settings of our own process."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterator

from nbdattach.host import bare_process, syscalls
from nbdattach.immutable import immutable
from nbdattach.text import plain

PROC = "/proc"
# File systems with a server that may be away (proc_filesystems(5)).
_REMOTE = ("nfs", "cifs", "smb3", "fuse", "ceph", "9p", "afs", "glusterfs", "lustre", "gfs2", "ocfs2")
_CAP_SYS_ADMIN = 1 << 21
# Names of shared memory, which looks like a deleted file in a process's maps.
_NO_FILES = ("/dev/zero", "/memfd:", "/SYSV")
_SERVICE = r"/system\.slice/(?:[^/]+\.slice/)*([^/]+\.service)"
_OCTAL = r"\\([0-7]{3})"
# The process that starts all threads of the kernel, in its own pid namespace; and the flag that only those have.
_KTHREADD = 2
_PF_KTHREAD = 0x00200000
# Of /proc/PID/task, which has two and one for each thread. A kernel thread has no descriptors and no other thread.
_LINKS_OF_ONE_THREAD = 3
# When a process was seen to be a thread of the kernel, by its number, and for how many seconds that is good: a command
# asks several times, and there may be thousands. Only a program that the kernel starts could pass for one then, if its
# number was given again so soon.
_seen_as_thread: dict[str, float] = {}
_GOOD_FOR = 5.0
# As in systemd/nbdattach-monitor.service: a monitor has about four for each device.
_OPEN_FILES = 65536
# Mount points of remote file systems, by mount namespace.
_remote: dict[str, tuple[str, ...]] = {}


@immutable
class Opener:
    """A process, and its descriptor of a block device if we found it by that, else as `open_files` has it."""

    pid: int
    name: str
    fd: int = -1

    def __str__(self) -> str:
        return f"{self.pid} ({plain(self.name)})" if self.name else str(self.pid)


def is_there() -> bool:
    """Whether /proc is mounted; without it we see no user of any device."""
    return os.path.exists(f"{PROC}/self")


def started(pid: int) -> int | None:
    """When it started, in clock ticks since boot (field 22 of proc_pid_stat(5)); None if there is no such process."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def alive(pid: int) -> bool:
    """There, and no zombie."""
    fields = _stat(pid)
    return fields is not None and fields[0] not in ("Z", "X")


def asleep(pid: int) -> bool:
    """Its first thread waits interruptibly."""
    fields = _stat(pid)
    return fields is not None and fields[0] == "S"


def runs(pid: int) -> bool:
    """Its first thread, or the thread of that number, runs or waits for a processor, and for nothing else."""
    fields = _stat(pid)
    return fields is not None and fields[0] == "R"


def stopped(pid: int) -> bool:
    """By a signal (SIGSTOP, or Ctrl-Z in a shell) or a debugger: it does nothing until it is continued."""
    fields = _stat(pid)
    return fields is not None and fields[0] in ("T", "t")


def sees_all() -> bool:
    """Whether we are in the initial pid namespace; elsewhere the kernel's pids are not ours (PROC_PID_INIT_INO)."""
    try:
        return os.readlink("/proc/self/ns/pid") == "pid:[4026531836]"
    except OSError:
        return False


def never_kill_for_memory() -> None:
    """The kernel spares this process when the machine runs out of memory, as far as we may ask for that."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")


def survive() -> None:
    """The machine may swap to a device that needs us: we must not wait for memory, nor be killed when it is short."""
    never_kill_for_memory()
    for wish in (syscalls.pr_set_io_flusher, syscalls.mlockall_on_fault):
        with contextlib.suppress(OSError):
            wish()


def stay_in_memory() -> None:
    """After `survive`: code that has not been in use so far need not be read from disk either."""
    for wish in (syscalls.mlockall_now, syscalls.mlockall_on_fault):  # the second one is for later mappings
        with contextlib.suppress(OSError):
            wish()


def runs_from_deleted_files() -> bool:
    """Whether a file that this process was loaded from is gone by now, as after an upgrade (proc_pid_maps(5))."""
    names = (line.split(maxsplit=5)[5] for line in lines("self/maps") if line.endswith(" (deleted)"))
    return any(name.startswith("/") and not name.startswith(_NO_FILES) for name in names)


def raise_descriptor_limit() -> None:
    """As many open files as we may have; with CAP_SYS_RESOURCE at least as many as systemd gives to the monitor."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < _OPEN_FILES:
        with contextlib.suppress(ValueError, OSError):  # EPERM is Python's ValueError, EACCES of SELinux is none
            resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
            return
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# The name of a process that reads a device for a moment.
LOOK = "nbdattach-look"


def is_ours(pid: int, name: str) -> bool:
    """Whether it is a process of root that gave itself that name."""
    try:
        return os.stat(f"{PROC}/{pid}").st_uid == 0 and name_of(pid) == name
    except OSError:
        return False


def block_number(place: str) -> str | None:
    """major:minor of a block device; None for anything else.

    Remote paths are skipped, because stat() of a file on a server that is away would hang.
    """
    if not place.startswith("/") or place.startswith(remote_places("self")):
        return None
    return number_of(place)


def number_of(place: str) -> str | None:
    try:
        found = os.stat(place)
    except OSError:
        return None
    return major_minor(found.st_rdev) if stat.S_ISBLK(found.st_mode) else None


def major_minor(number: int) -> str:
    """The number of a device in stat(2), as /sys and mountinfo write it."""
    return f"{os.major(number)}:{os.minor(number)}"


def remote_places(pid: str) -> tuple[str, ...]:
    """Mount points of file systems that may have no answer for us, in the mount namespace of that process.

    Any user may make a namespace, and mount a file system there that never answers.
    """
    namespace = _namespace(pid)
    if namespace not in _remote:
        found = []
        for line in lines(f"{pid}/mountinfo"):
            before, _, after = line.partition(" - ")
            if after.startswith(_REMOTE):
                found.append(unescaped(before.split(" ")[4]) + "/")
        _remote[namespace] = tuple(found)
    return _remote[namespace]


def unescaped(text: str) -> str:
    """A path as mountinfo writes it (proc_pid_mountinfo(5))."""
    return re.sub(_OCTAL, lambda match: chr(int(match[1], 8)), text)


def mount_tables() -> Iterator[tuple[Opener | None, list[str]]]:
    """Lines of mountinfo (proc_pid_mountinfo(5)): of our mount namespace, then of each other one that we may see.

    With a process of that namespace, None for our own. If a process in a chroot shows nothing, the next one is asked.
    """
    yield None, _mount_lines("self")
    seen = {_namespace("self")}
    for pid in pids():
        namespace = _namespace(str(pid))
        if namespace and namespace not in seen:
            found = _mount_lines(str(pid))
            if found:
                seen.add(namespace)
                yield Opener(pid, name_of(pid)), found


def mount_table() -> list[str]:
    """Lines of mountinfo of our own mount namespace."""
    return _mount_lines("self")


def _mount_lines(pid: str) -> list[str]:
    return [line for line in lines(f"{pid}/mountinfo") if " - " in line]


def runs_our_programs(pid: int) -> bool:
    """Whether a command in the mount namespace of that process is the program that we know by its name.

    nsenter(1) runs the program of that namespace, with our rights. So the namespace must belong to our own user
    namespace, and its root directory must be ours: in a container, or in a namespace that a user made, they differ.
    """
    try:
        namespace = os.open(f"{PROC}/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            owner = syscalls.ns_get_userns(namespace)
        finally:
            os.close(namespace)
        try:
            is_ours = os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))
        finally:
            os.close(owner)
    except OSError:
        return False
    root = _root_of(str(pid))
    return is_ours and root is not None and root == _root_of("self")


def _root_of(pid: str) -> tuple[str, str] | None:
    """File system and folder that are mounted at / there; None if that cannot be seen, as in a chroot."""
    fields = [line.split(" ") for line in _mount_lines(pid)]
    roots = [(one[2], one[3]) for one in fields if one[4] == "/"]
    return roots[-1] if roots else None


def service_of(pid: int) -> str:
    """The system service that the process is of, as systemd names it; empty for all else, containers among them."""
    for line in lines(f"{pid}/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        found = re.fullmatch(_SERVICE, path)
        if found and (number == "0" or controllers == "name=systemd"):
            return found[1]
    return ""


def group_of(pid: int) -> int:
    """The process that this thread belongs to; `pid` itself if we cannot see it."""
    found = [line.split()[1] for line in lines(f"{pid}/status") if line.startswith("Tgid:")]
    return int(found[0]) if found else pid


def name_of(pid: int) -> str:
    """As the kernel keeps it, at most 15 characters; empty if there is no such process."""
    return "".join(lines(f"{pid}/comm"))


def lines(name: str) -> list[str]:
    """Lines of a file in /proc; none if it cannot be read."""
    try:
        with open(f"{PROC}/{name}", errors="surrogateescape") as file:
            return file.read().removesuffix("\n").split("\n")  # splitlines() knows more ends than the kernel
    except OSError:
        return []


def pids() -> list[int]:
    """All processes that we may see, but threads of the kernel, which have neither files nor mounts of their own.

    The driver has some for each device.
    """
    threads = _kernel_threads()
    return [int(name) for name in os.listdir(PROC) if name.isdigit() and name not in threads]


def _kernel_threads() -> set[str]:
    """The children of kthreadd (proc_pid_task(5)); none if the kernel does not list them, or process 2 is another.

    But not the programs that the kernel starts, such as a handler of core dumps: they are its children, too.
    """
    fields = _stat(_KTHREADD)
    if not fields or not int(fields[6]) & _PF_KTHREAD:
        return set()
    children = " ".join(lines(f"{_KTHREADD}/task/{_KTHREADD}/children")).split()
    global _seen_as_thread
    now = time.monotonic()
    seen = {pid: at for pid, at in _seen_as_thread.items() if now - at < _GOOD_FOR}
    _seen_as_thread = {pid: seen.get(pid, now) for pid in children if pid in seen or _has_no_program(pid)}
    return set(_seen_as_thread)


def _has_no_program(pid: str) -> bool:
    """A program shows none either once its first thread has ended, but has another thread, with the open files."""
    try:
        os.readlink(f"{PROC}/{pid}/exe")
    except FileNotFoundError:
        return not has_other_threads(pid)
    except OSError:
        pass
    return False


def has_other_threads(pid: str) -> bool:
    """Beside the first one."""
    try:
        return os.stat(f"{PROC}/{pid}/task").st_nlink > _LINKS_OF_ONE_THREAD
    except OSError:
        return False  # the process has ended


def names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _namespace(pid: str) -> str:
    return link(f"{PROC}/{pid}/ns/mnt")


def link(place: str) -> str:
    """Where it leads; empty if it cannot be seen."""
    try:
        return os.readlink(place)
    except OSError:
        return ""


def is_root() -> bool:
    return os.geteuid() == 0


def may_administer() -> bool:
    """Whether we have CAP_SYS_ADMIN, which root in a container often has not. In doubt: yes."""
    try:
        with open("/proc/self/status") as file:
            (line,) = [line for line in file if line.startswith("CapEff:")]
    except (OSError, ValueError):
        return True
    return bool(int(line.split()[1], 16) & _CAP_SYS_ADMIN)


def _stat(pid: int) -> list[str] | None:
    return bare_process.stat_fields(pid, PROC) or None
