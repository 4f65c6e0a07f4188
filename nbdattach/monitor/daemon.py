# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon: a process in the background, which tells the one that started it whether it is ready."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from nbdattach.host import background


def start(run: Callable[[Callable[[], None]], None]) -> str:
    """Forks a process that does `run`, which calls its argument when it is ready.

    Returns when it is ready, with an empty text, or with the error.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with open(reader) as words:
            said = words.read()
        return "" if said == "ready" else said or "ended without a message"
    os.close(reader)
    _leave_the_starter()
    say = _once(writer)
    try:
        run(lambda: say("ready"))
    except Exception as error:
        say(str(error))
    os._exit(0)


def _leave_the_starter() -> None:
    """NOTIFY_SOCKET is the starter's: we must not report readiness or an end in its name."""
    os.environ.pop("NOTIFY_SOCKET", None)
    os.setsid()
    os.chdir("/")
    background.leave_terminal()


def _once(writer: int) -> Callable[[str], None]:
    """Writes the first word only: later the descriptor's number may belong to another file, even a server's socket."""
    left = [writer]

    def say(word: str) -> None:
        while left:
            with open(left.pop(), "wb", buffering=0) as file, contextlib.suppress(OSError):
                file.write(word.encode())

    return say
