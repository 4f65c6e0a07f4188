# SPDX-License-Identifier: GPL-2.0-or-later
"""Real NBD servers for tests: nbdkit, qemu-nbd, nbd-server; each is ready when its context is entered, gone after it.

Standard library only, and nothing of nbdattach: guests without either use it too.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from listening import Place, listens

READY_SECONDS = 60.0  # an emulated machine starts qemu-nbd in 10
POLL_SECONDS = 0.01


class Server:
    """A running server. `pid` is its process that listens; `place` is host and port, or the path of its Unix socket."""

    def __init__(self, process: subprocess.Popen[bytes], pid: int, place: Place, log: Path) -> None:
        self.pid = pid
        self.place = place
        # A daemon does not lead a process group if it forks once more after setsid (nbd-server 3.27).
        self._group = os.getpgid(pid)
        self._process = process
        self._log = log

    @property
    def tcp(self) -> tuple[str, int]:
        """Host and port of a server that has no Unix socket."""
        assert not isinstance(self.place, str)
        return self.place

    @property
    def uri(self) -> str:
        """The URI of the default export."""
        return self.export()

    def export(self, name: str = "", scheme: str = "nbd") -> str:
        """The URI of the export `name`; `scheme` is nbd or nbds."""
        path = quote(name, safe="/") if name else ""
        if isinstance(self.place, str):
            return f"{scheme}+unix:///{path}?socket={quote(self.place)}"
        return f"{scheme}://{self.place[0]}:{self.place[1]}" + (f"/{path}" if path else "")

    @property
    def log(self) -> str:
        """All that the server has printed so far."""
        return self._log.read_text(errors="replace")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends the signal to all of its processes; on return they have ended."""
        self._signal(number)
        poll(lambda: not self._lives(), f"signal {number} to end process group {self._group}")

    def stop(self) -> None:
        """Stops it as systemctl(1) does; it may run as long as a client is connected."""
        self._signal(signal.SIGTERM)

    @property
    def has_ended(self) -> bool:
        return not self._lives()

    def pause(self) -> None:
        """Stops it: it keeps its connections and answers nothing, until `resume`; on return it has stopped.

        One of its threads takes the signal when it runs, and the others may answer until then.
        """
        self._signal(signal.SIGSTOP)
        poll(lambda: self._states() <= set("TtDZX"), f"process group {self._group} to stop")

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> bool:
        """Whether a process got the signal, even a zombie; with `number` 0, whether one exists."""
        try:
            os.killpg(self._group, number)
        except ProcessLookupError:
            return False
        return True

    def _lives(self) -> bool:
        """Whether any thread of the group is left that is not a zombie; a zombie's parent may leave it for good."""
        if self._process.poll() is None:  # so most polls need no look at other processes
            return True
        return self._signal(0) and not self._states() <= set("ZX")

    def _states(self) -> set[str]:
        """Those of all threads of the group."""
        pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
        return {state for pid in pids if _group_of(pid) == self._group for state in map(_state_of, _threads(pid))}

    def is_up(self) -> bool:
        """Whether it takes connections. Raises `RuntimeError` with its log when it has ended.

        It makes no connection: a client that says nothing is an error in a server's log, and one more of its clients.
        """
        if listens(self.pid, self.place):
            return True
        if not self._lives():
            raise RuntimeError(f"the server ended: {self.log}")
        return False


def _group_of(pid: int) -> int:
    """0 if it has ended."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def _threads(pid: int) -> list[Path]:
    """None if it ends meanwhile."""
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _state_of(thread: Path) -> str:
    """X if it has ended."""
    try:
        return (thread / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return "X"


@contextlib.contextmanager
def nbdkit(
    *args: str, port: int = 0, unix: str = "", address: str = "127.0.0.1", namespace: str = ""
) -> Iterator[Server]:
    """`nbdkit ARGS` (plugin, filters, options) on a free port of `address`, or at the socket `unix`.

    `namespace` is that of its network, as ip-netns(8) names it.
    """
    place = _place(port, unix, address)
    where = ["--unix", place] if isinstance(place, str) else ["--ipaddr", place[0], "--port", str(place[1])]
    with _running([*_within(namespace), "nbdkit", "--foreground", *where, *args], place) as server:
        yield server


@contextlib.contextmanager
def qemu_nbd(
    image: str, *args: str, port: int = 0, unix: str = "", address: str = "127.0.0.1", namespace: str = ""
) -> Iterator[Server]:
    """`qemu-nbd ARGS IMAGE`, raw, for many clients; places as those of `nbdkit`."""
    place = _place(port, unix, address)
    where = ["--socket", place] if isinstance(place, str) else ["--bind", place[0], "--port", str(place[1])]
    command = [*_within(namespace), "qemu-nbd", "--persistent", "--shared=16", "--format=raw", *where, *args, image]
    with _running(command, place) as server:
        yield server


@contextlib.contextmanager
def qemu_nbd_of_its_own(image: str, *args: str) -> Iterator[Server]:
    """`qemu-nbd ARGS IMAGE` with its own defaults: one client at a time, and it ends with the last one."""
    place = _place(0, "")
    where = ["--bind", place[0], "--port", str(place[1])]
    with _running(["qemu-nbd", "--format=raw", *where, *args, image], place) as server:
        yield server


@contextlib.contextmanager
def storage_daemon(image: str, unix: str, clients: int = 16) -> Iterator[Server]:
    """`qemu-storage-daemon` with the raw image as the writable export "disk", for so many clients at the same time."""
    nbd = f"addr.type=unix,addr.path={unix},max-connections={clients}"
    command = ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=f,filename={image}", "--nbd-server", nbd]
    with _running([*command, "--export", "nbd,id=e,node-name=f,name=disk,writable=on"], unix) as server:
        yield server


@contextlib.contextmanager
def nbd_server(
    exports: Mapping[str, str], extra: str = "", port: int = 0, unix: str = "", generic: str = ""
) -> Iterator[Server]:
    """`nbd-server` of these exports (name: file); `extra` lines go to each of them, `generic` ones to all at once."""
    tcp = _place(port, "")
    lines = ["[generic]", "allowlist = true", f"listenaddr = {tcp[0]}", f"port = {tcp[1]}"]
    lines += [f"unixsock = {unix}"] if unix else []
    lines += [generic]
    for name, file in exports.items():
        lines += [f"[{name}]", f"exportname = {file}", extra]
    with tempfile.TemporaryDirectory(prefix="nbd-server-") as directory:
        config, pid = Path(directory, "config"), Path(directory, "pid")
        config.write_text("\n".join(lines) + "\n")
        # In the foreground (-d) it ends with its first client, so it must be a daemon.
        command = ["nbd-server", "-C", str(config), "-p", str(pid)]
        with _running(command, unix or tcp, pid) as server:
            yield server


def _place(port: int, unix: str, address: str = "127.0.0.1") -> Place:
    return unix or (address, port or free_port())


def _within(namespace: str) -> list[str]:
    return ["ip", "netns", "exec", namespace] if namespace else []


def free_port() -> int:
    """A port that was free a moment ago, and that the kernel gives to no program that asks for any port.

    So no other connection of this machine takes it while a test's server is away, not even one to itself.
    """
    while True:
        port = random.randrange(10240, 32768)  # below net.ipv4.ip_local_port_range
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def _running(command: list[str], place: Place, daemon: Path | None = None) -> Iterator[Server]:
    """Runs `command` until the end of the context. A daemon writes the file `daemon` with its process id."""
    with tempfile.NamedTemporaryFile(prefix="server-", suffix=".log") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        pid = _daemon(process, daemon, Path(log.name)) if daemon else process.pid
        server = Server(process, pid, place, Path(log.name))
        try:
            poll(server.is_up, f"{command} to take connections")
            yield server
        finally:
            server.kill()
            process.wait(READY_SECONDS)


def _daemon(starter: subprocess.Popen[bytes], file: Path, log: Path) -> int:
    """The process that `starter` leaves behind, from the file that it writes."""

    def written() -> bool:
        if starter.poll():
            raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')}")
        return file.exists() and file.read_text().endswith("\n")

    poll(written, f"{starter.args!r} to write {file}")
    return int(file.read_text())


def poll(done: Callable[[], bool], what: str) -> None:
    """Waits until `done()`. Raises `TimeoutError` that names the awaited event (`what`)."""
    end = time.monotonic() + READY_SECONDS
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {READY_SECONDS:g} s for {what}")
        time.sleep(POLL_SECONDS)
