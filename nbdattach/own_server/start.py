# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts a server of our own under its keeper."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence

from nbdattach.connect_options import USUAL, ImageOptions
from nbdattach.deadline import Deadline
from nbdattach.errors import BrokenProtocol, KernelRefused, Malformed, NbdattachError, NoConnection, Refused
from nbdattach.host import bare_files, systemd
from nbdattach.host.spawn import environment
from nbdattach.own_server import image, installed, kept
from nbdattach.own_server.end import end
from nbdattach.own_server.plan import Plan
from nbdattach.own_server.source import Source
from nbdattach.own_server.words import MAX_WORDS, last_words, named, refusal, with_words
from nbdattach.protocol.target import Target
from nbdattach.server_of_ours import OwnServer
from nbdattach.text import plain

_SOCKET = "socket"
# The path of a socket may have 107 bytes; ours has so many of them at most before its own names.
_MAX_FOLDER = 60
_TEMPORARY = "/tmp"  # noqa: S108 - the folder in it has a random name, and must not be there yet
# A keeper begins at once, and makes the socket at once; allow a slow machine so much.
_START_SECONDS = 30.0
# A server that a command only looks at has nothing to write.
_LOOK_SECONDS = 5.0
# The keeper notices the end of a server at once, but may not have had the time to say so.
_NOTICE_SECONDS = 0.5
_POLL = 0.005
# Of the caller's environment, beside `environment()`: what a command in brackets needs to find the user's keys.
_KEPT = ("HOME", "USER", "LOGNAME", "LANG", "SSH_AUTH_SOCK", "http_proxy", "https_proxy", "no_proxy")


class Served:
    """A server that runs for the caller, until `served` ends it. `read_only`: it takes no writes."""

    def __init__(self, server: OwnServer, log: int, read_only: bool, notes: Sequence[str], export: str) -> None:
        self.server = server
        self.read_only = read_only
        self.notes = notes
        self.target = Target(socket=f"{server.folder}/{_SOCKET}", export=export)
        self._log = log

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Errors inside name the source instead of the socket; if the server has ended, they say why."""
        try:
            yield
        except NbdattachError as error:
            raise self.worded(error) from None

    def worded(self, error: NbdattachError) -> NbdattachError:
        """The error of a connection to the server, as users understand it."""
        if isinstance(error, NoConnection) and self.has_ended(_NOTICE_SECONDS):
            return self.refusal()
        error = named(error, self.target.uri, self.server.name)
        if isinstance(error, (Refused, NoConnection, BrokenProtocol)):
            return with_words(error, self._words_soon(), self.server)
        return error

    def refusal(self) -> NbdattachError:
        """Why the server has ended."""
        return refusal(self.server, self._words())

    def has_ended(self, within: float = 0.0) -> bool:
        """Whether it has ended by itself, or does so within so many seconds."""
        patience = Deadline(within)
        while not kept.has_ended(self.server):
            if not patience.sleep(_POLL):
                return False
        return True

    def _words_soon(self) -> str:
        """Its words of the moment may be on their way through the keeper; nbdkit writes a line in several pieces."""
        patience = Deadline(_NOTICE_SECONDS)
        while not _has_a_whole_line(self._end_of_log()) and patience.sleep(_POLL):
            pass
        return self._words()

    def _words(self) -> str:
        return last_words(self._end_of_log())

    def _end_of_log(self) -> bytes:
        size = os.fstat(self._log).st_size
        return os.pread(self._log, MAX_WORDS, max(0, size - MAX_WORDS))


def _has_a_whole_line(end_of_log: bytes) -> bool:
    return end_of_log.endswith(b"\n") and bool(last_words(end_of_log))


def plan_of(
    source: Source,
    options: ImageOptions,
    read_only: bool,
    size: int | None = None,
    goes_on: bool = True,
    look: bool = False,
) -> Plan:
    """How to serve the source. Raises `NbdattachError`.

    `goes_on`: for a device that goes on if the server dies. `look`: only to read, and beside other programs.
    """
    if source.path:
        return image.plan(source.path, options, read_only, size, goes_on=goes_on, look=look)
    if options != USUAL or size is not None:
        cause = "options of an image, but it is a command"
        raise Malformed(plain(source.name), cause, "give the command its own options")
    program, *rest = source.words
    if not program:
        raise Malformed(plain(source.name), "its first word is empty", "write [ nbdkit memory 1G ]")
    return Plan((installed.required(program, source.name), *rest), read_only)


@contextlib.contextmanager
def served(
    source: Source,
    planned: Plan,
    lasting: bool = False,
) -> Iterator[Served]:
    """A server for the source, which ends with this context unless it is left to a device (`kept.leave_to`).

    `lasting`: for a device; needs root. Raises `NbdattachError`.
    """
    name = os.urandom(8).hex()
    folder = f"{kept.FOLDER}/{name}" if lasting else _own_folder(name)
    unit = f"nbdattach-server-{name}.service" if lasting and systemd.in_charge() else None
    cwd = "/" if source.path else current_folder()
    server = OwnServer(source.name, folder, planned.command, unit, planned.image, cwd)
    try:
        server = kept.start_keeper(server, os.getpid())
        log = _log_of(server)
    except BaseException:
        end(server, Deadline(_LOOK_SECONDS), kill=True)
        raise
    one = Served(server, log, planned.read_only, planned.notes, source.export)
    try:
        _give_plan(server, planned, source)
        _await_socket(one)
        yield one
    finally:
        if not kept.is_left(server):
            end(server, Deadline(_LOOK_SECONDS), kill=True)
        os.close(log)


def _own_folder(name: str) -> str:
    """A folder that no other user can replace. For root it is among those of servers of devices."""
    if os.geteuid() == 0:
        return f"{kept.FOLDER}/look-{name}"
    for wanted in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir()):
        if len(os.fsencode(wanted)) <= _MAX_FOLDER and _is_safe(wanted):
            return f"{wanted}/nbdattach-{name}"
    return f"{_TEMPORARY}/nbdattach-{name}"


def _is_safe(folder: str) -> bool:
    """Whether it is ours alone, or as /tmp, where each user keeps the own files."""
    try:
        status = os.stat(folder)
    except OSError:
        return False
    if status.st_mode & stat.S_ISVTX:
        return status.st_uid in (0, os.geteuid())
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _log_of(server: OwnServer) -> int:
    """The keeper makes its folder first."""
    deadline = Deadline(_START_SECONDS)
    while True:
        try:
            return os.open(f"{server.folder}/log", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if not deadline.sleep(_POLL):
                raise KernelRefused(
                    plain(server.name), "the keeper of its server does not start", "see dmesg"
                ) from None


def _give_plan(server: OwnServer, planned: Plan, source: Source) -> None:
    own = {name: os.environ[name] for name in _KEPT if name in os.environ}
    plan = {
        "name": plain(source.name),
        "command": server.command,
        "environment": {**environment(), **own},
        "cwd": server.cwd,
        "prepare": planned.prepare,
        "repair": planned.repair,
        "delete": planned.delete,
        "files": planned.files,
        "locks": planned.locks,
        "folder": os.path.dirname(planned.delete[0]) if planned.delete else "",
    }
    try:
        bare_files.replace(f"{server.folder}/plan", json.dumps(plan))
    except OSError as error:
        raise KernelRefused(
            plain(server.folder), f"cannot write there: {error.strerror}", "df shows how full it is"
        ) from None


def current_folder() -> str:
    """Raises `Malformed`."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise Malformed("current folder", "it was deleted", "cd / before the command") from None


def _await_socket(one: Served) -> None:
    deadline = Deadline(_START_SECONDS)
    while not os.path.exists(one.target.socket):
        if one.has_ended():
            raise one.refusal()
        if not deadline.sleep(_POLL):
            raise KernelRefused(plain(one.server.name), "its server does not start", "see dmesg")
