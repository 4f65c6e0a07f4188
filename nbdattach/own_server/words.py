# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors of a server of our own, worded for users: its name in place of its socket, and its last words as the cause."""

from __future__ import annotations

import contextlib
import os
import re
import shlex

from nbdattach.errors import DeadlinePassed, DeviceInUse, KernelRefused, NbdattachError, NoConnection, Refused
from nbdattach.own_server.kept import start_keeper, state_of
from nbdattach.server_of_ours import OwnServer
from nbdattach.text import plain, quoted

# Bytes of a log: the last lines are in them.
MAX_WORDS = 4096
_LOCKED = re.compile(r"Failed to get .*lock|Is another process using the image")


def last_words(data: bytes) -> str:
    """Of a log: the last line in which the server reports an error, or its last line; empty if it said nothing."""
    lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("nbdattach: ")]
    errors = [line for line in lines if "error:" in line or line.startswith("qemu-nbd: Failed")]
    return (errors or lines or [""])[-1].strip()


def named(error: NbdattachError, uri: str, name: str) -> NbdattachError:
    """The same error with the name that users know in place of the socket's URI."""
    error.thing, error.cause, error.hint = (
        text.replace(uri, plain(name)) for text in (error.thing, error.cause, error.hint)
    )
    error.args = (f"{error.thing}: {error.cause}",)
    return error


def refusal(server: OwnServer, words: str) -> NbdattachError:
    """The error for a server that has ended, by what it said."""
    thing = plain(server.name)
    if _LOCKED.search(words):
        cause = f"another program uses the image; it says: {quoted(words)}"
        return DeviceInUse(thing, cause, "stop the virtual machine that uses it, or attach a copy")
    said = f"; it says: {quoted(words)}" if words else ""
    cause = f"its server {os.path.basename(server.command[0])} ended{said}"
    if not words:
        return Refused(thing, cause, _activation(server))
    if "backing file" in words:
        return Refused(thing, cause, "qemu-img rebase -u corrects the name of a backing file")
    return Refused(thing, cause, f"its command: {plain(shlex.join(server.command))}")


def with_words(error: NbdattachError, words: str, server: OwnServer) -> NbdattachError:
    """A server that lives and refuses, as nbdkit does if it cannot reach what it serves, has told why.

    One that does not listen has not taken its socket.
    """
    if isinstance(error, NoConnection) and not isinstance(error, DeadlinePassed):
        error.hint = _activation(server)
    if words:
        error.cause = f"{error.cause}; its server says: {quoted(words)}"
        error.args = (f"{error.thing}: {error.cause}",)
    return error


def _activation(server: OwnServer) -> str:
    command = plain(shlex.join(server.command))
    return f"does it take its socket by LISTEN_FDS, and stay in the foreground? its command: {command}"


def revived(server: OwnServer, error: NbdattachError, uri: str) -> NbdattachError:
    """For the monitor, whose dial failed with that error: has a keeper start the server again, if none does.

    Returns the error with the name that users know, and with the server's last words if it is dead.
    """
    found = state_of(server)
    if found and not found.living_keeper and not server.unit:
        with contextlib.suppress(KernelRefused):
            start_keeper(server)
    if isinstance(error, NoConnection) and not (found and found.living_server):
        with contextlib.suppress(OSError), open(f"{server.folder}/log", "rb") as log:
            return refusal(server, last_words(log.read()[-MAX_WORDS:]))
    return named(error, uri, server.name)
