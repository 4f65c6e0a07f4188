"""Whether a process is still the one we knew, and what ours asks for itself. The one door to /proc/PID."""

from __future__ import annotations

import contextlib
import os
import resource
import signal


def started(pid: int) -> int | None:
    """When it started, in clock ticks since boot (field 22 of proc_pid_stat(5)); None where there is none."""
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


def sees_all() -> bool:
    """Whether we are in the initial pid namespace; elsewhere the kernel's pids are not ours (PROC_PID_INIT_INO)."""
    try:
        return os.readlink("/proc/self/ns/pid") == "pid:[4026531836]"
    except OSError:
        return False


def never_kill_for_memory() -> None:
    """This process is passed over when the machine runs out of memory, as far as we may say so."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")


def raise_descriptor_limit() -> None:
    """As many open files as we may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def end_signals() -> int:
    """SIGTERM and SIGINT end nothing from now on; the descriptor becomes readable at each."""
    woken, wake = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return woken


def is_root() -> bool:
    return os.geteuid() == 0


def _stat(pid: int) -> list[str] | None:
    """The fields after the name, which may itself contain anything; the first is the state."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None
