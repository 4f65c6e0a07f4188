# SPDX-License-Identifier: GPL-2.0-or-later
"""One server of the catalogue in the guest: its root, its start, a polite stop, a kill. Knows nothing of nbdattach."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from certificates import make
from listening import Place, listens
from setups import UNIX, Setup

# A short path of the root, as the name of a Unix socket has 107 bytes at most.
ROOT = Path("/r")
_READY = 40.0  # seconds, of user-mode Linux on a busy machine
_BESIDE = "python3 sshd sleep sh dash bash cat"  # of `prepare`, by the names of their programs


class NotRunning(Exception):
    """The server cannot be started; with the end of its log."""


class Server:
    def __init__(self, setup: Setup, release: Path) -> None:
        self._setup = setup
        self._log = ROOT / "tmp/log"
        self._starter: subprocess.Popen[bytes] | None = None
        self.place: Place = f"{ROOT}{UNIX}" if setup.unix else ("127.0.0.1", 10809)
        self.tls = False
        _enter(release)
        make(ROOT / "srv/tls")
        (ROOT / "srv/disk").touch()
        os.truncate(ROOT / "srv/disk", 16 << 20)
        in_root(setup.prepare)

    def version(self) -> str:
        found = in_root(f"dpkg-query -W -f '${{Version}}' {self._setup.package}")
        return found.split(":")[-1]

    def start(self) -> None:
        """Returns when it listens. Raises `NotRunning`."""
        with contextlib.suppress(FileNotFoundError):
            (ROOT / UNIX[1:]).unlink()
        command = self._setup.tls if self.tls else self._setup.command
        with self._log.open("ab") as log:
            self._starter = subprocess.Popen(
                ["chroot", ROOT, "sh", "-c", command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        if not within(_READY, lambda: self.listener() is not None or self._gave_up()):
            self.kill()
        if self.listener() is None:
            raise NotRunning(self._log.read_text(errors="replace")[-300:].strip())

    def _gave_up(self) -> bool:
        return self._starter is not None and self._starter.poll() not in (None, 0)

    def listener(self) -> int | None:
        """The process that listens at its place."""
        return next((pid for pid in _processes() if listens(pid, self.place)), None)

    def stop(self) -> bool:
        """As systemctl(1) stops it; whether all of its processes end within three seconds."""
        pid = self.listener()
        assert pid
        program = _program(pid)
        os.kill(pid, signal.SIGTERM)
        return within(3, lambda: not [one for one in _processes() if _program(one) == program])

    def kill(self) -> None:
        """Its processes, and not the helpers that `prepare` has started, unless they run the same program."""
        pid = self.listener()
        program = _program(pid) if pid else ""
        for one in _processes():
            if _program(one) == program or (self._starter and _session(one) == self._starter.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
        within(20, lambda: not [one for one in _processes() if program and _program(one) == program])
        if self._starter:
            self._starter.wait(20)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")


def in_root(script: str) -> str:
    """Standard output of a shell script in the root. Raises `NotRunning` if it fails."""
    log = ROOT / "tmp/script.log"
    with log.open("wb") as errors:  # a daemon of the script keeps it, and a pipe would never end
        done = subprocess.run(["chroot", ROOT, "sh", "-euc", script], stdout=errors, stderr=errors, timeout=120)
    said = log.read_text(errors="replace")
    if done.returncode:
        raise NotRunning(said[-300:].strip())
    return said.strip()


def within(seconds: float, true: Callable[[], object]) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _enter(release: Path) -> None:
    ROOT.mkdir()
    script = f"""
        mount --bind {release} {ROOT}
        mount -t proc proc {ROOT}/proc
        mount --rbind /dev {ROOT}/dev
        mount -t tmpfs tmpfs {ROOT}/tmp; chmod 1777 {ROOT}/tmp
        mount -t tmpfs tmpfs {ROOT}/run
        mount -t tmpfs tmpfs {ROOT}/srv
        mkdir -p {ROOT}/var/tmp; mount -t tmpfs tmpfs {ROOT}/var/tmp; chmod 1777 {ROOT}/var/tmp
        echo 127.0.0.1 localhost >{ROOT}/etc/hosts
    """
    subprocess.run(["sh", "-euc", script], check=True)


def _processes() -> list[int]:
    """All that run in the root and are not zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.path.samefile(entry / "root", ROOT) and os.readlink(entry / "exe"):
                found.append(int(entry.name))
    return sorted(found)


def _program(pid: int) -> str:
    try:
        return Path(os.readlink(f"/proc/{pid}/exe")).name
    except OSError:
        return ""


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0
