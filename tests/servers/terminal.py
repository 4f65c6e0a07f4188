# SPDX-License-Identifier: GPL-2.0-or-later
"""A terminal with a command on it, as script(1) makes one: the command's output, and the actions of a user.

Lives here because this folder is on the path of all tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

PATIENCE = 60.0
_ESCAPE = re.compile(r"\x1b(\[[?0-9;]*[a-zA-Z]|[>=]|\(B)")


class Terminal:
    """The command is the leader of its session. `said` is all that came to the terminal, `before` its first modes."""

    def __init__(self, command: Sequence[str], lines: int = 24, columns: int = 80, **environment: str) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(lines, columns)
        self.before = self.modes()
        self.said = ""
        self._seen = 0
        self.process = subprocess.Popen(
            command,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
            preexec_fn=_as_a_shell_starts_it,
            env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", **environment},
        )

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def see(self, *texts: str) -> None:
        """Returns when it has said all of them since the last call."""
        self._wait(lambda said: all(text in said for text in texts), texts)

    def see_match(self, pattern: str) -> None:
        """The same for a pattern, which sees a space for each movement of the cursor."""
        self._wait(lambda said: re.search(pattern, _ESCAPE.sub(" ", said)), pattern)

    def _wait(self, true: Callable[[str], object], wanted: object) -> None:
        end = time.monotonic() + PATIENCE
        while not true(self.said[self._seen :]):
            assert time.monotonic() < end, (wanted, self.said[self._seen :])
            self._read(0.1)
        self._seen = len(self.said)

    def end(self) -> int:
        """The exit status, when it has ended by itself."""
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it does not end: {self.said}"
            self._read(0.05)
        while self._read(0):
            pass
        return self.process.returncode

    def hang_up(self) -> None:
        os.close(self._master)
        self._master = -1

    def _read(self, seconds: float) -> bool:
        if self._master < 0:
            time.sleep(seconds)
            return False
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        self.said += os.read(self._master, 1 << 16).decode(errors="replace")
        return True

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for fd in (self._master, self._slave):
            with contextlib.suppress(OSError):
                os.close(fd)


def _as_a_shell_starts_it() -> None:
    """On its terminal, with default signal handlers: the program that runs the tests may ignore signals (nohup)."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def terminal(command: Sequence[str], lines: int = 24, columns: int = 80, **environment: str) -> Iterator[Terminal]:
    made = Terminal(command, lines, columns, **environment)
    try:
        yield made
    finally:
        made.close()
