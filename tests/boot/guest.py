# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that boots systemd with our package in it, and its logs afterwards. Knows nothing of single tests.

The guest's root is this machine's, or the one of the Debian release that LAB_ROOT names, with some files put over it;
LAB_KERNEL names its kernel. Its network leads to 10.9.0.1, where the tests serve.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
HOST = "10.9.0.1"
TAP = "lab0"
_RELEASE = os.environ.get("LAB_ROOT", "")  # empty: this machine's root
_KERNEL = os.environ.get("LAB_KERNEL") or "7.2"  # the quickest
_NETWORK = "[Match]\nName=vec0\n[Network]\nAddress=10.9.0.2/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
# A line of the console: the kernel's stamp, then the name of the program.
_LINE = re.compile(r"\[ *([0-9]+\.[0-9]+)\] (.*)")
_SECONDS = 600.0  # on a machine that is very busy
# Seconds from the kernel's start to there, if nothing else runs on the machine.
_SYSINIT_SECONDS = 9.0


class Guest:
    """The guest runs from the beginning of the context to the end of `wait`."""

    def __init__(self, process: subprocess.Popen[str], out: Path) -> None:
        self._process = process
        self._out = out

    @property
    def console(self) -> str:
        """The log of the kernel, systemd and the journal, so far."""
        with contextlib.suppress(OSError):
            return (self._out / "console.log").read_text(errors="replace")
        return ""

    @property
    def lines(self) -> list[tuple[float, str]]:
        """Lines of the console, with the seconds since boot."""
        return [(float(found[1]), found[2]) for found in map(_LINE.match, self.console.splitlines()) if found]

    def when(self, text: str) -> float:
        """Seconds since boot of the first line with that text. Fails if there is none: any order would hold then."""
        stamps = [stamp for stamp, line in self.lines if text in line]
        assert stamps, f"no {text!r} on the console: {self.console[-3000:]}"
        return stamps[0]

    def wait_for(self, text: str, seconds: float = _SECONDS) -> None:
        """Waits until the console has that text."""
        deadline = time.monotonic() + seconds
        while text not in self.console:
            assert time.monotonic() < deadline and self._process.poll() is None, f"no {text!r}: {self.console[-3000:]}"
            time.sleep(0.05)

    def let_run(self, seconds: float) -> None:
        """Waits for that long; fails if the guest ends before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.console[-3000:]
            time.sleep(0.05)

    def wait(self) -> str:
        """The output of COMMAND; the guest is off then. Fails if COMMAND did."""
        output, errors = self._process.communicate()
        tail = "\n".join(self.console.splitlines()[-40:])
        assert self._process.returncode == 0, f"exit {self._process.returncode}\n{errors}\n{output}\n{tail}"
        assert "Powering off." in self.console
        return output

    def see_quick_stops(self) -> None:
        """No stop job waits for longer than 10 s; on a machine that is busy with other things, for so much longer."""
        slowness = max(1.0, self.when("Reached target sysinit.target") / _SYSINIT_SECONDS)
        seconds, unit = self._longest_stop()
        print(f"the longest stop: {seconds:.1f} s, {unit}; {slowness:.1f} times as slow as an idle machine")
        assert seconds < 10 * slowness, f"{unit} took {seconds:.1f} s to stop, {slowness:.1f} times is allowed"

    def _longest_stop(self) -> tuple[float, str]:
        began: dict[str, float] = {}
        took = [(0.0, "")]
        for stamp, line in self.lines:
            words = line.split()
            if len(words) < 3 or not words[0].startswith("systemd[") or ".target" in words[2]:
                continue
            if words[1] in ("Stopping", "Unmounting", "Deactivating"):
                began[words[2].rstrip(".")] = stamp
            elif words[1] in ("Stopped", "Unmounted", "Deactivated") and words[2].rstrip(".") in began:
                took.append((stamp - began.pop(words[2].rstrip(".")), words[2]))
        # The lab's own: from there come the modules of programs that run to the end. Any other unit that never ends,
        # ends with the power.
        began = {unit: stamp for unit, stamp in began.items() if not unit.startswith("usr-lib-modules")}
        took += [(self.lines[-1][0] - stamp, unit) for unit, stamp in began.items()]
        return max(took)


@contextlib.contextmanager
def booting(folder: Path, command: str, files: Mapping[str, str], seconds: float = _SECONDS) -> Iterator[Guest]:
    """Boots to multi-user.target, runs the shell command there, powers off. `files` are put over the root."""
    root, out = folder / "root", folder / "out"
    _put_files(root, files)
    lab = [sys.executable, str(TREE / "tests/lab/guest.py"), "--kernel", _KERNEL, "--memory", "1G"]
    lab += [*(["--root", _RELEASE] if _RELEASE else []), "--timeout", str(seconds), "--out", str(out)]
    with subprocess.Popen(
        [*lab, "--tap", TAP, "--boot", str(root), "--", "sh", "-eux", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=TREE,
    ) as process:
        try:
            yield Guest(process, out)
        finally:
            process.terminate()


@functools.cache
def root_of_guest() -> Path:
    """The folder that its root is made from; another release's is made if it is missing."""
    if not _RELEASE:
        return Path("/")
    lab = [sys.executable, str(TREE / "tests/lab/roots.py"), _RELEASE]
    return Path(subprocess.run(lab, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def package() -> Path:
    """The package that `make deb` has made."""
    (found,) = (TREE / "dist").glob("nbdattach_*_all.deb")
    return found


def _put_files(root: Path, files: Mapping[str, str]) -> None:
    root.mkdir(parents=True)
    subprocess.run(["dpkg-deb", "--extract", str(package()), str(root)], check=True)
    assert not (root / "lib").exists()  # the root that this is put over has a link there
    _put(root / "etc/systemd/network/vec0.network", _NETWORK)
    for name, content in files.items():
        _put(root / name, content)


def enabled(*units: str) -> dict[str, str]:
    """For `files`: these instances of nbdattach@.service, by a unit that wants them as their [Install] says."""
    wants = " ".join(units)
    return {"etc/systemd/system/multi-user.target.d/wants.conf": f"[Unit]\nWants={wants}\n"}


def _put(path: Path, content: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
