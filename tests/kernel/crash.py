# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line in a fork of this process, killed (-9) at one of its steps, or its helper (worker, guard) at one.

A step is the moment right before or right after a system call of the package that changes something, such as
"before kernel.node.Node.claim: open 1": a profile function finds it, so the product has no hooks. A run without a
kill lists the steps. Of polled calls, the first rounds are steps.

Helpers are bare interpreters (-I -S) and import this file, too: nothing heavy at its top.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys

import nbdattach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Any, NoReturn

_CALLS = {
    "posix": {"open", "close", "unlink", "replace", "rename", "mkdir", "rmdir", "write", "fork", "setsid", "pread"},
    "fcntl": {"ioctl", "flock", "fcntl"},
    "_posixsubprocess": {"fork_exec"},
    "_signal": {"pthread_sigmask"},
    "_socket": {"connect", "sendmsg", "setsockopt"},
    "_io": {"__exit__"},  # a file written is a file closed
}
# pyroute2 makes many calls of one message.
_MESSAGES = {"kernel.netlink.Family.connect", "kernel.netlink.Family.reconfigure", "kernel.netlink.Family.disconnect"}
# Functions that only read, and the handshake: they change nothing that could stay.
_LOOKS = (
    "cli.",
    "connection.client.",
    "operations.connections.",
    "kernel.driver.",
    "kernel.netlink.",
    "host.procfs.",
    "host.open_files.",
    "attached.status.",
    "connection.stream.",
    "host.systemd.",
    "attached.users.",
    "host.copies.",
)
_NAMES = frozenset().union(*_CALLS.values())
_MESSAGE_NAMES = {place.rpartition(".")[2] for place in _MESSAGES}
_LOOK = {
    "attached.state.load",
    "attached.state.trouble_of",
    "kernel.sysfs._read",
    "kernel.bare_sysfs.attribute",
    "kernel.bare_sysfs.loop_on",
    "host.kmsg.write",
    "host.kmsg.append",
    "host.kmsg.open_log",
    "connection.kernel_socket.watch_peer",
}
_ROUNDS = 2
_COPIES = ("nbdattach-guard", "nbdattach-flush")
_HELPER = re.compile(rb"from nbdattach\.kernel\.\w+ import ")
_PACKAGE = f"{os.path.dirname(nbdattach.__file__)}/"


class Steps:
    """A profile function: notes each step in the file `log`, a line each, and kills this process at the step `last`.

    With it die all helpers and the process `other`, if it is given.
    """

    def __init__(self, log: str, last: str, other: int = 0, helpers: bool = False) -> None:
        self._pid = os.getpid()
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._inode = os.fstat(self._log).st_ino
        self._last = last
        self._other = other
        self._helpers = helpers
        self._seen: dict[str, int] = {}

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        """For each call of the process, so most of them have to end at the first condition."""
        if event in ("call", "return"):
            code = frame.f_code
            if code.co_name in _MESSAGE_NAMES and (place := _function(code)) in _MESSAGES:
                self._note(f"{'before' if event == 'call' else 'after'} {place}")
        elif arg.__name__ in _NAMES and (name := _call(arg)):
            place = _innermost(frame)
            aside = frame.f_code.co_filename.endswith("/subprocess.py") and name != "fork_exec"  # its own pipes
            if place.endswith(".<module>"):  # an import, which may write its bytecode
                return
            if place and not place.startswith(_LOOKS) and place not in _LOOK and not aside:
                self._note(f"{'before' if event == 'c_call' else 'after'} {place}: {name}")

    def _has_log(self) -> bool:
        try:
            return os.fstat(self._log).st_ino == self._inode
        except OSError:
            return False

    def _note(self, what: str) -> None:
        if os.getpid() != self._pid and not self._has_log():
            return  # a copy of the monitor that reads a disk
        self._seen[what] = self._seen.get(what, 0) + 1
        if self._seen[what] <= _ROUNDS:
            step = f"{what} {self._seen[what]}"
            os.write(self._log, f"{step}\n".encode())
            if step == self._last:
                self._die()

    def _die(self) -> None:
        for pid in [*(helpers() if self._helpers else []), self._other, os.getpid()]:
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def helpers() -> list[int]:
    """The running workers, guards and flushes."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
            if _HELPER.search(file.read()) or _comm(name) in _COPIES:
                found.append(int(name))
    return found


def _comm(pid: str) -> str:
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()


def _call(function: Any) -> str:
    """The name of the system call behind a C function, if it is one of ours."""
    owner = type(getattr(function, "__self__", None))
    modules = [getattr(function, "__module__", None), *(one.__module__ for one in owner.__mro__)]
    name: str = function.__name__
    return name if any(name in _CALLS.get(str(module), ()) for module in modules) else ""


def _innermost(frame: FrameType | None) -> str:
    """The function of the package that is running."""
    while frame:
        if place := _function(frame.f_code):
            return place
        frame = frame.f_back
    return ""


def _function(code: CodeType) -> str:
    """Its full name below the package; empty if it is not of ours."""
    file = code.co_filename
    if not file.startswith(_PACKAGE):
        return ""
    return f"{file.removeprefix(_PACKAGE).removesuffix('.py').replace('/', '.')}.{code.co_qualname}"


# -- the command ---------------------------------------------------------------------------------------------------


class Ended:
    """The end of a command: `code` is that of a shell, -9 if it was killed; `steps` are those that were reached."""

    def __init__(self, code: int, said: str, steps: list[str], helper_steps: list[str]) -> None:
        self.code = code
        self.said = said
        self.steps = steps
        self.helper_steps = helper_steps


def run(
    *arguments: str,
    kill: str = "",
    helper: str = "",
    kill_helper: str = "",
    both: bool = False,
    contested: bool = False,
    noted: bool = True,
) -> Ended:
    """`nbdattach ARGUMENTS`, killed at the step `kill`, and its `helper` ("main", "guard") at `kill_helper`.

    With `both`, each takes the other along. `contested`: as if other programs opened and closed the device constantly.
    Without `noted`, which a kill needs, it is twice as fast, and has no steps.
    """
    from preloaded import import_all

    files = [f"/tmp/crash.{name}" for name in ("said", "steps", "helper")]
    for file in files:
        with open(file, "w"):
            pass
    said, steps, helper_steps = files
    import_all()
    child = os.fork()
    if child == 0:
        try:
            _wrap_helper(helper, helper_steps, kill_helper, both)
            if contested:
                _contest()
            become(arguments, said, Steps(steps, kill, helpers=both) if noted else None)
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    texts = [open(file).read() for file in files]  # noqa: SIM115
    return Ended(os.waitstatus_to_exitcode(status), texts[0], texts[1].splitlines(), texts[2].splitlines())


def become(arguments: tuple[str, ...], said: str, steps: Steps | None) -> NoReturn:
    import threading

    from nbdattach.cli import main

    null, out = os.open(os.devnull, os.O_RDONLY), os.open(said, os.O_WRONLY | os.O_APPEND)
    for fd, number in ((null, 0), (out, 1), (out, 2)):
        os.dup2(fd, number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    threading.setprofile(steps)
    sys.setprofile(steps)
    code = main.run(list(arguments))
    sys.setprofile(None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _contest() -> None:
    from dataclasses import replace

    from nbdattach.operations import attachment

    job = attachment.Job
    attachment.Job = lambda *facts: replace(job(*facts), contested=True)  # type: ignore[assignment,misc]


def _wrap_helper(helper: str, log: str, last: str, both: bool) -> None:
    """Makes it call `in_helper` first."""
    from nbdattach.backends import by_ioctl
    from nbdattach.kernel import guard

    bare_python = by_ioctl.bare_python
    other = os.getpid() if both else 0
    work = guard.guard

    def guarding(*arguments: Any) -> None:
        in_helper(log, last, other)
        work(*arguments)

    if helper == "guard":
        guard.guard = guarding  # type: ignore[assignment]

    def command(module: str, function: str, *arguments: str) -> list[str]:
        line = bare_python(module, function, *arguments)
        if function == helper:
            code = line.index("-c") + 1
            hooked = f"sys.path.insert(0, {_HERE!r}); import crash; crash.in_helper({log!r}, {last!r}, {other}); "
            line[code] = line[code].replace("from nbdattach", f"{hooked}from nbdattach", 1)
        return line

    by_ioctl.bare_python = command


_HERE = os.path.dirname(os.path.abspath(__file__))


def in_helper(log: str, last: str, other: int) -> None:
    """Steps of this helper and of its threads."""
    import _thread

    steps = Steps(log, last, other)
    start = _thread.start_new_thread

    def start_watched(function: Any, *arguments: Any) -> int:
        def watched(*inner: Any) -> None:
            sys.setprofile(steps)
            function(*inner)

        return start(watched, *arguments)

    _thread.start_new_thread = start_watched
    sys.setprofile(steps)
