# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends a server of our own: asks its keeper for that, and waits for both."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal

from nbdattach import untrusted_json
from nbdattach.deadline import Deadline
from nbdattach.errors import KernelRefused
from nbdattach.host import procfs
from nbdattach.own_server.kept import FOLDER, state_of
from nbdattach.own_server.words import MAX_WORDS, last_words
from nbdattach.server_of_ours import OwnServer
from nbdattach.text import plain

_KILL_SECONDS = 5.0


def end(server: OwnServer, deadline: Deadline, kill: bool = False) -> str:
    """Ends the server and its keeper, and waits for them; returns what the server said at its end, or an empty text.

    With `kill` the server is killed at the deadline. Raises `KernelRefused` if it has not ended by then.
    """
    try:
        log = os.open(f"{server.folder}/log", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        _end(server, deadline, kill)  # its keeper has died at its start
        return ""
    try:
        before = os.fstat(log).st_size
        _end(server, deadline, kill)
        size = os.fstat(log).st_size
        return last_words(os.pread(log, MAX_WORDS, before if size >= before else 0))
    finally:
        os.close(log)


def _end(server: OwnServer, deadline: Deadline, kill: bool) -> None:
    found = state_of(server)
    keeper = found.living_keeper if found else None
    if keeper:
        _ask(keeper, deadline)
        if kill and procfs.alive(keeper):
            _ask(keeper, Deadline(_KILL_SECONDS))  # at a second SIGTERM it kills the server
    pid = found.living_server if found else None
    if pid:
        _ask(pid, deadline)
        if kill and procfs.alive(pid):
            _ask(pid, Deadline(_KILL_SECONDS), signal.SIGKILL)
    for left, what in ((pid, "its server"), (keeper, "the keeper of its server")):
        if left and procfs.alive(left):
            cause = f"detached, but {what} (process {left}) has not ended"
            raise KernelRefused(plain(server.name), cause, f"kill -KILL {left} ends it")
    if not keeper:
        _delete_its_files(server)
    shutil.rmtree(server.folder, ignore_errors=True)
    if os.path.dirname(server.folder) == FOLDER:
        with contextlib.suppress(OSError):  # others are in it
            os.rmdir(FOLDER)


def _delete_its_files(server: OwnServer) -> None:
    """As the keeper would have done."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        with open(f"{server.folder}/plan") as file:
            paths = untrusted_json.parsed(file.read(untrusted_json.MAX_TEXT))["delete"]
        for path in paths:
            os.unlink(path)
            os.rmdir(os.path.dirname(path))  # it was made for it


def _ask(pid: int, deadline: Deadline, number: int = signal.SIGTERM) -> None:
    """Sends the signal and waits for the end of the process."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)  # if it is stopped, it could not heed the other one
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(max(0.0, deadline.remaining()) * 1000)
    finally:
        os.close(pidfd)
