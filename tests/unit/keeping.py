# SPDX-License-Identifier: GPL-2.0-or-later
"""Keepers as real processes, in a bare interpreter as in use, but with records and a /sys of the test.

Their servers are small programs that take a listening socket as systemd passes it. Each has a variable in its
environment by which the test finds it, even after its parent has ended; so no test leaves one behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loopback import PATIENCE, eventually

from nbdattach.host import bare_files, procfs
from nbdattach.host.spawn import bare_python

# Replaces, in the keeper's process, the folder of the records, /sys/block and the times.
_PRETEND = """
import sys
from nbdattach.own_server import keeper
def attribute(name, what):
    try:
        with open(f"{root}/sys/block/{{name}}/{{what}}") as file:
            return file.read().strip()
    except OSError:
        return ""
keeper.attribute = attribute
keeper.RECORDS, keeper.SERVERS = "{root}/run", "{root}/run/servers"
keeper._POLL, keeper._PAUSES, keeper._WELL = {poll}, {pauses}, {well}
keeper._LAST_KEEPER = {last}
keeper.{function}(sys.argv[1:])
"""
# Writes a line of facts about itself to `facts`, says "serving", and tells each client its pid.
_SERVER = """
import json, os, signal, socket, sys, time
folder, *rest = sys.argv[1:]
handled = [one for one in range(1, 65) if one not in (9, 19, 32, 33) and signal.getsignal(one) == signal.SIG_IGN]
facts = {
    "pid": os.getpid(), "environment": dict(os.environ), "cwd": os.getcwd(), "session": os.getsid(0),
    "descriptors": sorted(int(one) for one in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{one}")),
    "streams": [os.readlink(f"/proc/self/fd/{one}") for one in range(3)], "ignored": handled,
    "at": time.monotonic(),
}
if "deaf" in rest:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(f"{folder}/facts", "a") as file:
    print(json.dumps(facts), file=file)
if "frail" in rest and os.path.exists(f"{folder}/dying"):
    sys.exit(7)
print("serving", *rest, flush=True)
listener = socket.socket(fileno=3)
while True:
    client, _ = listener.accept()
    client.sendall(str(os.getpid()).encode())
    client.close()
"""


def pretending(
    root: Path, function: str, poll: float = 0.02, pauses: str = "(0.01,)", well: float = 60.0, last: float = 600.0
) -> list[str]:
    """The command of a keeper with records, servers and devices below `root`; the folder is still to be added."""
    command = bare_python("own_server.keeper", function)
    code = command.index("-c") + 1
    boot = command[code].partition("from nbdattach.")[0]
    times = {"poll": poll, "pauses": pauses, "well": well, "last": last}
    command[code] = boot + _PRETEND.format(root=root, function=function, **times)
    return command


def server(root: Path, *rest: str) -> list[str]:
    """The command of a server. With "deaf" it ignores SIGTERM; with "frail" it ends while there is a file `dying`."""
    script = root / "server.py"
    script.write_text(_SERVER)
    return [sys.executable, "-I", "-S", str(script), str(root), *rest]


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


class Owner:
    """The command that waits for the server: a process that does nothing."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self.identity = (self._process.pid, procfs.started(self._process.pid) or 0)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(PATIENCE)
        if self._process.stdin:
            self._process.stdin.close()


class Kept:
    """The folder of one server, and the keepers that the test has started there."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.folder = root / "run/servers" / name
        self.folder.mkdir(mode=0o700, parents=True)
        self.owner = Owner()
        self.keepers: list[subprocess.Popen[bytes]] = []

    def plan(self, command: Sequence[str], **more: Any) -> None:
        plan = {
            "name": "/d.img",
            "command": command,
            "environment": {"KEPT_FOR": str(self.root)},
            "cwd": "/",
            "prepare": [],
            "repair": [],
            "delete": [],
            "locks": [],
            "folder": "",
            "files": [],
        }
        bare_files.replace(f"{self.folder}/plan", json.dumps({**plan, **more}))  # whole: a keeper may be waiting for it

    def command(self, function: str = "main", **times: Any) -> list[str]:
        return [*pretending(self.root, function, **times), str(self.folder), *map(str, self.owner.identity)]

    def start(self, function: str = "main", **times: Any) -> subprocess.Popen[bytes]:
        command = self.command(function, **times)
        with open(self.root / "errors", "ab") as errors:
            keeper = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, cwd="/")
        self.keepers.append(keeper)
        return keeper

    def serve(self, command: Sequence[str] | None = None, **times: Any) -> subprocess.Popen[bytes]:
        """Starts a keeper, and waits until its server serves."""
        if not (self.folder / "plan").exists():
            self.plan(command or server(self.root))
        keeper = self.start(**times)
        self.another(0)
        assert keeper.poll() is None, self.errors
        return keeper

    def another(self, before: int) -> int:
        """The pid of the server that has taken the place of that one; 0 if no keeper is there to start one."""
        found = 0

        def is_there() -> bool:
            nonlocal found
            found = self.answers()
            return found not in (0, before) or all(one.poll() is not None for one in self.keepers)

        eventually(is_there)
        return found

    # -- to look at it ----------------------------------------------------------------------------------------------

    @property
    def errors(self) -> str:
        """The keepers' standard error: the words of their servers, and a traceback if one failed."""
        with contextlib.suppress(FileNotFoundError):
            return (self.root / "errors").read_text()
        return ""

    @property
    def log(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log").read_text()
        return ""

    @property
    def state(self) -> dict[str, int]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            found: object = json.loads((self.folder / "state").read_text() or "{}")
            return found if isinstance(found, dict) else {}
        return {}

    @property
    def facts(self) -> list[dict[str, Any]]:
        """About each server that was started, the first one first."""
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.root / "facts").read_text().splitlines(keepends=True)]
        return []

    def answers(self) -> int:
        """The pid of the server, as a client is told it; 0 if none answers."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            with short(self.folder) as folder:
                client.connect(f"{folder}/socket")
            return int(client.recv(20) or 0)
        return 0

    def servers(self) -> list[int]:
        return servers_of(self.root)

    def is_gone(self) -> bool:
        return not self.folder.exists() and self.servers() == []

    # -- to change it -----------------------------------------------------------------------------------------------

    def attach(self, name: str = "nbd0", **record: object) -> None:
        """The attachment is complete: the device has a pid in /sys, and a record that names the folder."""
        device = self.root / "sys/block" / name
        device.mkdir(parents=True)
        (device / "pid").write_text("4711\n")
        content = {"server": {"folder": str(self.folder)}, **record}
        (self.root / f"run/{name}.json").write_text(json.dumps(content))
        (self.folder / "device").write_text(name)

    def clear(self) -> None:
        for keeper in self.keepers:
            if keeper.poll() is None:
                keeper.kill()
            keeper.wait(PATIENCE)
        for pid in (*processes_of(self.root), *self.servers()):
            kill(pid)
        self.owner.kill()


@contextlib.contextmanager
def short(folder: Path) -> Iterator[str]:
    """A name of the folder that fits into the address of a socket."""
    number = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)


def servers_of(root: Path) -> list[int]:
    """Processes with the variable of this test, without those that only wait for their parent."""
    return [pid for pid in _pids() if f"KEPT_FOR={root}".encode() in _read(pid, "environ").split(b"\0")]


def processes_of(root: Path) -> list[int]:
    """Keepers and servers, which have a file of the test on their command line."""
    return [pid for pid in _pids() if pid != os.getpid() and f"{root}/".encode() in _read(pid, "cmdline")]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()
    return b""


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Sends the signal to a process, and waits for its end if that is certain."""
    assert pid > 0, "0 is our own process group"
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    if number == signal.SIGKILL:
        eventually(lambda: not procfs.alive(pid))


@contextlib.contextmanager
def kept(root: Path, name: str = "1") -> Iterator[Kept]:
    made = Kept(root, name)
    try:
        yield made
    finally:
        made.clear()
