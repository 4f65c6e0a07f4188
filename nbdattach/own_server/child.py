# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that the keeper starts: the server, with a socket as systemd would pass it, and what prepares its image.

The keeper imports this module, so it imports next to nothing.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the module signal builds enums on it: 0.9 MB
import os

TYPE_CHECKING = False  # the module typing costs 1 MB
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Descriptors that a server may get are below this one, and the keeper's own are not. The socket is number 3
# (sd_listen_fds(3)), locks of images are those above.
FREE = 63
FIRST_LOCK = 4


def reserve() -> None:
    """So that none of our files gets a number that the server needs."""
    while os.open(os.devnull, os.O_RDONLY) < FREE:
        pass


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    cwd: str,
    words: str,
    listener: int = -1,
    locks: Sequence[int] = (),
) -> tuple[int, int]:
    """Starts a program whose output goes to the pipe at `words`; returns its pid, and an order to it (`let_go`).

    `listener` becomes the socket of its activation. `locks` are open files that it only keeps open. The program waits
    for `let_go`: if we are killed before, when its pid may be noted nowhere, it does not run at all.
    """
    wait, go = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        try:
            os.close(go)
            if os.read(wait, 1):
                _become(command, environment, cwd, words, listener, locks)
        finally:
            os._exit(127)
    os.close(wait)
    return pid, go


def let_go(go: int) -> None:
    """The program begins."""
    try:
        os.write(go, b"G")
    except BrokenPipeError:
        pass  # it was killed
    os.close(go)


def _become(
    command: Sequence[str], environment: Mapping[str, str], cwd: str, words: str, listener: int, locks: Sequence[int]
) -> None:
    # For reading, too: so a keeper that is killed does not take the server with it when that says something.
    said = os.open(words, os.O_RDWR)
    null = os.open(os.devnull, os.O_RDWR)
    inherited = [null, said, said, listener, *locks]
    for number, file in enumerate(inherited):
        if file >= 0:
            os.dup2(file, number)
        else:
            os.close(number)
    os.closerange(len(inherited), 1 << 16)
    os.setsid()
    os.umask(0o077)  # what it makes has data of the disk
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    thing = cwd
    try:
        os.chdir(cwd)
        thing = command[0]
        # LISTEN_PID is the process that executes the server, else the server does not take the socket.
        activation = {} if listener < 0 else {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        os.execve(command[0], [*command], {**environment, **activation})  # noqa: S606 - no shell
    except OSError as error:
        os.write(2, f"{thing}: {error.strerror}\n".encode(errors="replace"))
