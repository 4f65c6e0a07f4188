# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies of this process, for work that may wait for a silent server without end, or that outlives us.

Decisions that matter:
* A copy runs no program. An interpreter takes ten times as long to start; and the system's files may be on a device
  whose server is away: the start of a program would wait for that server, with this process in some releases of Python.
* It keeps no descriptor but those that it is given: a hanging one must not hold a lock of ours, nor a connection, nor
  keep a program that reads our output waiting.
* Its work imports nothing: another thread of ours may hold the lock of imports, which nobody would release there.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Hashable
from typing import ClassVar, NoReturn

_STANDARD = 3  # descriptors
_FAILED = 1
_MAX_CODE = 8  # bytes, in decimal
# The last question about a thing, if it has not been answered.
_unanswered: dict[Hashable, Question] = {}


class Copy:
    """A copy of this process that does `work`, with those descriptors only; its exit status is what `work` returns.

    An OSError of `work` makes it the errno. `name` is what ps shows as its command, of at most 15 bytes. With
    `own_session` a signal that our terminal sends does not reach it.
    """

    _all: ClassVar[set[Copy]] = set()  # that have not ended yet, so that none is left behind as a zombie

    def __init__(self, work: Callable[[], int | None], *descriptors: int, name: str, own_session: bool = False) -> None:
        self._code: int | None = None
        self._mutex = threading.Lock()  # the number of a process that has ended may be that of another one
        Copy._all.difference_update([one for one in list(Copy._all) if one.ended])
        self._said, theirs = os.pipe()
        try:
            self._pid = os.fork()
            if not self._pid:
                _become(work, (theirs, *descriptors), name, own_session)
        except BaseException:
            os.close(self._said)
            raise
        finally:
            os.close(theirs)
        Copy._all.add(self)

    @property
    def pid(self) -> int:
        """It may be that of another process once this one has ended."""
        return self._pid

    def kill(self) -> None:
        with self._mutex:
            if self._exit_code() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)

    @property
    def ended(self) -> bool:
        with self._mutex:
            return self._exit_code() is not None

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit status, negative if a signal has ended it; None if it still runs after so many seconds."""
        with self._mutex:
            code = self._exit_code()
            if code is not None:
                return code
            try:
                pidfd = os.pidfd_open(self._pid)
            except ProcessLookupError:  # it has ended this moment, and left nothing
                return self._exit_code()
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(None if seconds is None else seconds * 1000)
        finally:
            os.close(pidfd)
        with self._mutex:
            return self._exit_code()

    def _exit_code(self) -> int | None:
        if self._code is None:
            try:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
                if not pid:
                    return None
                self._code = os.waitstatus_to_exitcode(status)
            except ChildProcessError:  # we were started with SIGCHLD ignored, so the kernel does not keep its status
                self._code = int(os.read(self._said, _MAX_CODE) or -signal.SIGKILL)
            os.close(self._said)
        return self._code


class Question:
    """A question to the kernel that a copy asks, because nothing ends a process that hangs there: it is left behind."""

    def __init__(self, question: Callable[[], str]) -> None:
        out, into = os.pipe()
        self._out = out
        try:
            self._copy = Copy(lambda: os.write(into, question().encode()) and None, into, name="nbdattach-ask")
        except BaseException:
            os.close(out)
            raise
        finally:
            os.close(into)

    def answer(self, seconds: float) -> str | None:
        """To be called once. Empty if the question raises, None if the kernel does not let it return in time."""
        with open(self._out, "rb") as pipe:
            poll = select.poll()  # select() takes no number above 1023, and the monitor may have thousands
            poll.register(pipe, select.POLLIN)
            if not poll.poll(seconds * 1000):
                self._copy.kill()
                return None
            answer = pipe.read().decode()
        self._copy.wait()
        return answer

    @property
    def hangs(self) -> bool:
        """After the answer: whether the copy is still there."""
        return not self._copy.ended


def answer_within(seconds: float, question: Callable[[], str]) -> str | None:
    """The answer; empty if `question` raises, None if the kernel does not let it return in time."""
    return Question(question).answer(seconds)


def answer_about(thing: Hashable, seconds: float, question: Callable[[], str]) -> str | None:
    """As `answer_within`; None at once while the last question about this thing hangs: no other one hangs beside it.

    For what a command asks again and again, such as status --watch.
    """
    if thing in _unanswered and _unanswered[thing].hangs:
        return None
    asked = Question(question)
    answer = asked.answer(seconds)
    if answer is None:
        _unanswered[thing] = asked
    return answer


def _become(work: Callable[[], int | None], descriptors: tuple[int, ...], name: str, own_session: bool) -> NoReturn:
    """The first descriptor takes its exit status, too."""
    code = _FAILED
    try:
        _keep_only(descriptors)
        os.chdir("/")
        _forget_signals()
        if own_session:
            os.setsid()
        with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
            file.write(name)
        code = work() or 0
    except OSError as error:
        code = error.errno or _FAILED
    finally:
        with contextlib.suppress(OSError):
            os.write(descriptors[0], b"%d" % code)
        os._exit(code)


def _keep_only(descriptors: tuple[int, ...]) -> None:
    for number in range(_STANDARD):
        if number not in descriptors:
            with contextlib.suppress(OSError):
                os.close(number)
    null = os.open(os.devnull, os.O_RDWR)  # takes the place of the first one; what is written there goes nowhere
    for number in range(_STANDARD):
        if number not in (null, *descriptors):
            os.dup2(null, number)
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= _STANDARD and int(name) not in descriptors:
            with contextlib.suppress(OSError):  # the one of this very list
                os.close(int(name))


def _forget_signals() -> None:
    """What our program ignores, as with nohup, its copies ignore, too."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
