# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that keeps one server running: starts it, again if it dies, and ends it when no device needs it.

It is run by a bare interpreter (`python -I -S`), by systemd as a service or as a process of its own; so it imports next
to nothing. Its folder has these files:

    plan      JSON: what to run (`own_server.start` writes it)
    socket    the server's
    state     JSON: pid of keeper and server, restarts
    words     a pipe from the server's standard output and error
    log       the words of the server, and the keeper's
    device    "nbd0", when the server is attached there

Decisions that matter:
* The server gets a listening socket as systemd would pass it (LISTEN_FDS, sd_listen_fds(3)), a new one at each start,
  and only the server has it: while it is dead, a client is refused at once and tries again.
* The server is needed while the command that wanted it runs, and after that while the device has an attachment whose
  record names this folder. So a command that is killed, at any step, leaves no server behind.
* The keeper makes the folder and removes it, and what is made for the server. So nothing is there without a keeper.
* All that the keeper needs is in its folder. So another keeper can take its place, and goes on with the same server.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the module signal builds enums on it: 0.9 MB
import _socket as socket  # the module socket costs 1 MB
import json
import os
import select
import time

from nbdattach.host import background, bare_files, bare_process, syscalls
from nbdattach.kernel.bare_sysfs import attribute
from nbdattach.own_server import child, image_lock
from nbdattach.own_server.server_log import ServerLog

TYPE_CHECKING = False  # the module typing costs 1 MB
if TYPE_CHECKING:
    from typing import Any

RECORDS = "/run/nbdattach"
SERVERS = f"{RECORDS}/servers"
# Seconds between looks whether the device still needs the server.
_POLL = 2.0
# Seconds within which a shutdown asks all processes to end.
_SHUTDOWN = 30.0
# Seconds for which a child of a keeper that was killed may still have its files.
_LAST_CHILD = 2.0
# Seconds for which another keeper may still have the image. It looks for its device that often, and then ends.
_LAST_KEEPER = 2 * _POLL + 1
# Seconds between looks for it.
_TURN = 0.05
# Seconds between requests to end.
_AGAIN = 1.0
# Milliseconds between looks for the plan, while the command makes it.
_MOMENT = 5
# Seconds from the death of a server to its next start: at once, then longer and longer.
_PAUSES = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
# A server that has lived so many seconds is well: the next pause is the first one again.
_WELL = 10.0
# To make the folder, which others may remove at the same time.
_ATTEMPTS = 100
# Open files that a keeper may need.
_FILES = 256
# More clients at once than any device has connections.
_BACKLOG = 128
SIGKILL = 9
SIGTERM = 15


def main(arguments: list[str]) -> None:
    """`arguments`: the folder; pid and start time of the command that wants the server."""
    folder, owner, owner_started = arguments
    _allow_files()
    child.reserve()
    _make(folder)
    if not _enter(folder) or not _is_alone():
        return
    keeper = Keeper(folder, bare_process.pidfd_of(int(owner), int(owner_started)))
    try:
        if keeper.has_plan():
            keeper.run()
    except BaseException:
        if keeper.is_needed():
            raise  # the server goes on without us
    if keeper.is_needed():
        os._exit(1)  # another keeper goes on; without systemd the monitor starts it
    keeper.kill()
    keeper.remove_all()


def _allow_files() -> None:
    """`child` needs some, and the limit that the user has may be less than that."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _FILES:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILES, hard) if hard >= 0 else _FILES, hard))
        except (OSError, ValueError):
            pass


def _make(folder: str) -> None:
    for _ in range(_ATTEMPTS):
        try:
            os.makedirs(folder, 0o700)
        except FileExistsError:
            pass  # in the place of another keeper, or made by another user to have us run what it has
        except FileNotFoundError:
            continue  # another keeper has just removed the folder of all
        return


def _enter(folder: str) -> bool:
    """Makes it the current folder; False if it is not ours alone, or a link."""
    there = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(there)
    os.fchdir(there)
    os.close(there)
    return status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _is_alone() -> bool:
    """Locks the folder; False if another keeper has it. One that was killed may have a child that just starts."""
    lock = os.open("keeper", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + _LAST_CHILD
    while True:
        try:
            syscalls.flock(lock)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(_MOMENT / 1000)


def main_aside(arguments: list[str]) -> None:
    """As `main`, for a keeper that is no service: it leaves the command that started it."""
    background.leave_parent()
    main(arguments)


class Keeper:
    """`owner` is a pidfd of the command that wants the server, -1 if that has gone."""

    def __init__(self, folder: str, owner: int) -> None:
        self._folder = folder
        self._wake = bare_process.end_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._plan: dict[str, Any] = {}
        self._owner = owner
        self._restarts = -1
        self._pid = 0
        self._server = -1  # pidfd
        self._log = ServerLog()
        self._began = 0.0
        self._deaths = 0
        self._signals = 0  # that asked us to end, and the time of the last one
        self._asked = -_SHUTDOWN
        self._locks: list[int] = []
        self._folder_lock = -1
        self._servers_locks = 0
        self._survive()
        self._adopt()
        self._note()
        self._log.begin()  # the last of all: the command waits for it

    def has_plan(self) -> bool:
        """Waits for it. False if the command has died before it had one, or wants the keeper to end."""
        poll = select.poll()
        for number in (self._wake, self._owner):
            if number >= 0:
                poll.register(number, select.POLLIN)
        while True:
            try:
                with open("plan") as file:
                    self._plan = json.load(file)
                    return True
            except FileNotFoundError:
                if self._owner < 0 or poll.poll(_MOMENT):
                    return False

    def run(self) -> None:
        """Returns when nothing needs the server any more, or when its command is to report why it has ended."""
        if self._server >= 0:
            self._take_locks()
        while True:
            if self._server < 0 and not (self._prepare() and self._start()):
                code = 1
            elif self._wait(None) == "end":
                break
            else:
                code = self._reap()
            # At the end of a shutdown all processes are asked to end at the same time.
            asked = time.monotonic() - self._asked < _SHUTDOWN and code in (0, -SIGTERM)
            if asked or not self.is_needed():
                self._log.say(f"ended {code}")
                return
            self._log.say(f"{self._plan['name']}: its server ended ({_meaning(code)}); starting it again")
            if time.monotonic() - self._began > _WELL:
                self._deaths = 0
            pause = _PAUSES[min(self._deaths, len(_PAUSES) - 1)]
            self._deaths += 1
            self._note()
            if self._wait(pause) == "end":
                break
        self._end()

    # -- the server ------------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Goes on with the server of a keeper before this one, which was killed."""
        try:
            with open("state") as file:
                before = json.load(file)
            pid, began, restarts = (int(before[name]) for name in ("pid", "started", "restarts"))
            begun, locks = bool(before["begun"]), int(before.get("locks", 0))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return
        self._server = bare_process.pidfd_of(pid, began)
        if begun:
            self._restarts = restarts
        if self._server >= 0:
            self._pid = pid
            self._servers_locks = locks

    def _take_locks(self) -> None:
        """Those of an adopted server, so that they do not end with it. If it has none, its next start takes them."""
        wanted = {identity for _, identity in self._plan.get("files", ())}
        try:
            for number in range(child.FIRST_LOCK, child.FIRST_LOCK + self._servers_locks):
                self._locks.append(syscalls.pidfd_getfd(self._server, number))
            good = all(bare_files.identity(os.fstat(one)) in wanted for one in self._locks)
        except OSError:
            good = False
        if not good:
            self._unlock()

    def _prepare(self) -> bool:
        """What has to be done before the first start of a server, or before the next ones; whether it succeeded."""
        try:
            self._require_image()
            if self._plan["folder"]:
                self._have_folder()
        except OSError as error:
            self._log.append(f"{self._plan['name']}: {error.strerror or error}\n".encode(errors="replace"))
            return False
        command = self._plan["repair" if self._restarts >= 0 else "prepare"]
        if not command:
            return True
        self._pid, go = child.start(command, self._plan["environment"], "/", "words")
        self._server = os.pidfd_open(self._pid)
        child.let_go(go)
        while self._wait(None) == "end":
            bare_process.send(self._server, SIGKILL)
        return self._reap() == 0

    def _have_folder(self) -> None:
        """Of a file that the server writes. Raises OSError."""
        if self._restarts < 0:
            os.mkdir(self._plan["folder"], 0o700)  # another user must not have put one there
        if self._folder_lock < 0:  # it keeps systemd-tmpfiles from deleting what is old in /var/tmp
            self._folder_lock = os.open(self._plan["folder"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            syscalls.flock(self._folder_lock)

    def _require_image(self) -> None:
        """Locks the image, also for the time when its server is dead. Raises OSError.

        Each name must still lead to the very file that is attached, and not to a copy.
        """
        self._require_same_files()
        if not self._locks:
            self._locks = self._locked()
            try:
                self._require_same_files()  # they may have been replaced while we waited
            except OSError:
                self._unlock()
                raise

    def _require_same_files(self) -> None:
        for path, identity in self._plan.get("files", ()):
            if bare_files.identity(os.stat(path)) != identity:
                raise OSError(f"another file has the name {path} now; the device needs the one that had it before")

    def _locked(self) -> list[int]:
        """Waits for the keeper of an attachment of this image that has just gone. Raises OSError."""
        end = time.monotonic() + _LAST_KEEPER
        last = False
        while True:
            try:
                return image_lock.all_locked(self._plan["locks"])
            except image_lock.Locked:
                ends = self._wait(_TURN) == "end" or (self._owner < 0 and not self.is_needed())
                if last or ends:
                    raise
            # Once more after a look that has found none: it may have ended before that.
            last = not self._has_another_keeper() or time.monotonic() > end

    def _has_another_keeper(self) -> bool:
        """Whether another one has locks that ours cannot be beside."""
        ours = _ways_of_locking(self._plan)
        try:
            names = os.listdir(SERVERS)
        except OSError:
            return False
        for name in names:
            if f"{SERVERS}/{name}" == self._folder:
                continue
            try:
                with open(f"{SERVERS}/{name}/plan") as file:
                    theirs = _ways_of_locking(json.load(file))
            except (OSError, ValueError, TypeError, AttributeError, RecursionError):
                continue  # it is just starting or ending
            if any(which in ours and {how, ours[which]} != {"read"} for which, how in theirs.items()):
                return True
        return False

    def _unlock(self) -> None:
        while self._locks:
            os.close(self._locks.pop())

    def _start(self) -> bool:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        bare_files.remove("socket.new")
        listener.bind("socket.new")
        listener.listen(_BACKLOG)
        self._began = time.monotonic()
        plan = self._plan
        self._pid, go = child.start(
            plan["command"], plan["environment"], plan["cwd"], "words", listener.fileno(), self._locks
        )
        self._server = os.pidfd_open(self._pid)
        listener.close()
        self._restarts += 1
        self._servers_locks = len(self._locks)
        self._note()
        os.rename("socket.new", "socket")  # in place of the one before, and never without a listener
        child.let_go(go)
        return True

    def _reap(self) -> int:
        """The exit code of the server that has ended, negative for a signal; 0 if it is not our child."""
        self._log.listen()
        try:
            os.waitid(os.P_PIDFD, self._server, os.WEXITED | os.WNOWAIT)
            try:
                os.killpg(self._pid, SIGKILL)  # what it has started; it leads the group until we have waited for it
            except OSError:
                pass
            _, status = os.waitpid(self._pid, 0)
            code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:  # adopted
            code = 0
        os.close(self._server)
        self._server, self._pid = -1, 0
        return code

    def kill(self) -> None:
        """Nobody needs the server, nor what it has started; that became our child when its parent had gone."""
        if self._server >= 0:
            bare_process.send(self._server, SIGKILL)
            poll = select.poll()
            poll.register(self._server, select.POLLIN)
            poll.poll(_LAST_CHILD * 1000)  # it may not be our child
        for pid in bare_process.children():
            try:
                os.kill(pid, SIGKILL)
                os.waitpid(pid, 0)
            except OSError:
                pass
        self._unlock()  # before its folder goes: a keeper without one has none

    def _end(self) -> None:
        """Asks the server to end, and waits for it: it may have much to write. At a second SIGTERM it is killed."""
        code = 0
        if self._server >= 0:
            # Again and again: a server that just starts may not heed it yet.
            bare_process.send(self._server, SIGTERM)
            while self._wait(_AGAIN, ending=True) != "dead":
                bare_process.send(self._server, SIGKILL if self._signals > 1 else SIGTERM)
            code = self._reap()
            if code == -SIGTERM:
                code = 0
        self._log.say(f"ended {code}")

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _wait(self, seconds: float | None, ending: bool = False) -> str:
        """Until the server dies ("dead"), nothing needs it any more ("end"), or `seconds` have passed ("")."""
        limit = None if seconds is None else time.monotonic() + seconds
        while True:
            poll = select.poll()
            for number in (self._wake, self._server, self._log.words, self._owner):
                if number >= 0:
                    poll.register(number, select.POLLIN)
            rest = _POLL if limit is None else min(_POLL, max(0.0, limit - time.monotonic()))
            ready = {number for number, _ in poll.poll(1000 if self._owner >= 0 and limit is None else rest * 1000)}
            if self._log.words in ready:
                self._log.listen()
            if self._wake in ready:
                self._signals += len(os.read(self._wake, 64))
                self._asked = time.monotonic()
                if ending or not self.is_needed():
                    return "end"
                self._log.say("asked to end, but a device needs the server")
            if self._owner in ready:
                os.close(self._owner)
                self._owner = -1
            if self._server in ready:
                return "dead"
            if limit is not None and time.monotonic() >= limit:
                return ""
            if not ending and self._owner < 0 and not self.is_needed():
                return "end"

    def is_needed(self) -> bool:
        """Whether the device still has the attachment that this server was started for. In doubt it has."""
        try:
            with open("device") as file:
                name = file.read()
            with open(f"{RECORDS}/{name}.json") as file:
                server = json.load(file).get("server")
            ours: bool = server is not None and server["folder"] == self._folder
        except FileNotFoundError:
            return False
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return True
        return ours and bool(attribute(name, "pid"))

    # -- its files -----------------------------------------------------------------------------------------------------

    def _note(self) -> None:
        state = {
            "keeper": os.getpid(),
            "keeper_started": bare_process.started(os.getpid()),
            "pid": self._pid,
            "started": bare_process.started(self._pid) if self._pid else 0,
            "restarts": max(0, self._restarts),
            "begun": self._restarts >= 0,  # the image was prepared, and that must not be done twice
            "locks": self._servers_locks,
        }
        try:
            bare_files.replace("state", json.dumps(state))
        except OSError:
            pass  # /run is full

    def remove_all(self) -> None:
        """Removes the folder, and the files that the plan names."""
        for path in self._plan.get("delete", ()):
            bare_files.remove(path)
        for name in os.listdir("."):
            bare_files.remove(name)
        for path in (self._plan.get("folder") or self._folder, self._folder, SERVERS):  # the last one may have others
            try:
                os.rmdir(path)
            except OSError:
                pass

    def _survive(self) -> None:
        """The machine may write out its memory to this server, which must not wait for memory, nor be killed for it.

        The server inherits it.
        """
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("-1000")
            syscalls.pr_set_io_flusher()
        except OSError:
            pass  # not root
        syscalls.pr_set_child_subreaper()


def _meaning(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _ways_of_locking(plan: dict[str, Any]) -> dict[str, str]:
    """How its keeper locks each file, by the identity of that."""
    identities = dict(plan.get("files", ()))
    return {identities[path]: how for path, how in plan.get("locks", ()) if path in identities}
