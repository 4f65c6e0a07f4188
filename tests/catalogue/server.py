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

from certificates import Authority
from listening import Place, listens
from setups import UNIX, Setup

# A short path of the root, as the name of a Unix socket has 107 bytes at most.
ROOT = Path("/r")
_READY = 40.0  # seconds, of user-mode Linux on a busy machine


class NotRunning(Exception):
    """The server cannot be started; with the end of its log."""


class Server:
    def __init__(self, setup: Setup, release: Path) -> None:
        self._setup = setup
        self._log = ROOT / "tmp/log"
        self._starter: subprocess.Popen[bytes] | None = None
        # In the root; from outside, the name of a socket begins with that of the root.
        self.place: Place = UNIX if setup.unix else ("127.0.0.1", 10809)
        self.tls = False
        _enter(release)
        authority = Authority(ROOT / "srv/authority")
        for kind in ("server", "client"):
            authority.issue(ROOT / "srv/tls", kind)
        (ROOT / "srv/disk").touch()
        os.truncate(ROOT / "srv/disk", 16 << 20)
        in_root(setup.prepare)
        self._helpers = _processes()

    def version(self) -> str:
        found = in_root(f"dpkg-query -W -f '${{Version}}' {self._setup.package}")
        return found.split(":")[-1]

    def start(self) -> None:
        """Returns when it listens. Raises `NotRunning`."""
        for left in (UNIX, "/run/nbd-server.pid"):  # a killed server leaves them behind
            (ROOT / left[1:]).unlink(missing_ok=True)
        if self._own():
            self.kill()
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
        return next((pid for pid in self._own() if listens(pid, self.place)), None)

    def stop(self) -> bool:
        """As systemctl(1) stops it; whether it ends within three seconds."""
        pid = self.listener()
        assert pid
        os.kill(pid, signal.SIGTERM)
        return within(3, lambda: pid not in _processes())

    def kill(self) -> None:
        """All of its processes."""
        for pid in self._own():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not within(20, lambda: not self._own()):
            raise NotRunning("it does not end")
        if self._starter:
            self._starter.wait(20)

    def _own(self) -> list[int]:
        return [pid for pid in _processes() if pid not in self._helpers]

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
