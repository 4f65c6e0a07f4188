# SPDX-License-Identifier: GPL-2.0-or-later
"""What a server says on its standard output and error, and its keeper beside it: in a file, and in the journal.

The keeper imports this module, so it imports next to nothing.
"""

from __future__ import annotations

import os
import select

_MAX_WORDS = 4096
_MAX_LOG = 64 << 10


class ServerLog:
    """In the current folder: the pipe `words` comes from the server, the file `log` is for the command that waits.

    `words` is a descriptor that is readable when the server has said something.
    """

    def __init__(self) -> None:
        try:
            os.mkfifo("words", 0o600)
        except FileExistsError:
            pass
        # For writing, too: so it has no end, even without a server.
        self.words = os.open("words", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._log = -1

    def begin(self) -> None:
        """Makes the file, if there is none."""
        self._log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def listen(self) -> None:
        """Takes over what the server has said."""
        while True:
            try:
                self.append(os.read(self.words, _MAX_WORDS))
            except BlockingIOError:
                return

    def say(self, line: str) -> None:
        self.append(f"nbdattach: {line}\n".encode(errors="replace"))

    def append(self, words: bytes) -> None:
        """To the file, and to our standard error, which systemd puts into the journal. It never waits."""
        try:
            if os.fstat(self._log).st_size > _MAX_LOG:
                os.ftruncate(self._log, 0)
            os.write(self._log, words)
        except OSError:
            pass  # /run is full
        ready = select.poll()
        ready.register(2, select.POLLOUT)
        if ready.poll(0):
            try:
                os.write(2, words)
            except OSError:
                pass
