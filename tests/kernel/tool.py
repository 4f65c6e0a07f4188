# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line as a user runs it, and short checks of devices."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import warm

import nbdattach
from nbdattach.host import procfs

CHUNK = 1 << 20
# The backend that these tests attach by; each lane of the Makefile names one.
BACKEND = os.environ.get("LAB_BACKEND", "ioctl")
TOOL = str(Path(__file__).with_name("bin") / "nbdattach")
# For nbd-client, so that it does not attach by netlink. Without a name, 3.27.1 takes no other argument beside it.
BY_IOCTL = "-nonetlink -N ''"
# make test-all: each step and many rounds; make test takes samples.
ALL = os.environ.get("NBDATTACH_EXAMPLES") == "all"
# A promise in seconds holds on a machine that does nothing else (LAB_ALONE=1). A busy machine gets so many times as
# long, which is still less than a fault takes: the driver's 30 s and more, or for ever.
_SLOWNESS = 1 if os.environ.get("LAB_ALONE") == "1" else 4


def promised(seconds: float) -> float:
    """The longest time that an event may take if it is promised within so many seconds."""
    return seconds * _SLOWNESS


@dataclass(frozen=True)
class Done:
    """The end of a command."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def command(name: str, *arguments: str) -> list[str]:
    """An nbdattach command line; connect uses the lane's backend if it names none."""
    return [sys.executable, TOOL, *by_our_backend(name, *arguments)]


def by_our_backend(name: str, *arguments: str) -> list[str]:
    """Arguments of nbdattach; connect gets the lane's backend if it names none."""
    if name == "connect" and "--backend" not in arguments:
        arguments = ("--backend", BACKEND, *arguments)
    return [name, *arguments]


def nbd(*arguments: str, seconds: float = 240, cwd: Path | None = None) -> Done:
    """Runs nbdattach with these arguments."""
    done = warm.run(by_our_backend(*arguments), cwd, seconds)
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def at_once(*commands: Sequence[str]) -> list[Done]:
    """nbdattach with each of these lists of arguments, at the same time; in their order."""
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda arguments: nbd(*arguments), commands))


def nbd_ok(*arguments: str, cwd: Path | None = None) -> str:
    """Standard output of a command that must succeed."""
    done = nbd(*arguments, cwd=cwd)
    assert done.code == 0, done
    return done.out.strip()


def shell(command: str) -> str:
    """Standard output of a shell command that must succeed."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@contextlib.contextmanager
def attached(target: str, device: str | None = "/dev/nbd0", **options: Any) -> Iterator[nbdattach.Attachment]:
    """An attachment by the API, detached at the end."""
    with connect(target, device, **options) as attachment:
        yield attachment


def connect(target: str, device: str | None = None, **options: Any) -> nbdattach.Attachment:
    """The API, by the lane's backend. Several connections with a monitor need a timeout."""
    if "tag" in options:  # these tests attach one export at several devices
        options = {"shared": True, **options}
    if options.get("connections", 1) > 1 and options.get("reconnect", True):
        options = {"io_timeout": 3, **options}
    return nbdattach.connect(target, device, **{"backend": BACKEND, **options})


def killed_connects(target: str, chance: random.Random, rounds: int = 8) -> Iterator[None]:
    """Runs connects at nbd0 and kills them (-9), each after a random part of the time that one takes."""
    began = time.monotonic()
    nbd_ok("connect", target, "nbd0")
    took = time.monotonic() - began
    nbd_ok("disconnect", "nbd0")
    for _ in range(rounds):
        process = subprocess.Popen(command("connect", target, "nbd0"), stdout=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.3, 1.0) * took)
        process.kill()
        process.wait()
        yield


def fill_with_noise(path: str | Path, mebibytes: int) -> str:
    """Writes that much random data through the page cache; returns its SHA-256."""
    digest = hashlib.sha256()
    with open(path, "r+b", buffering=0) as file:
        for _ in range(mebibytes):
            noise = os.urandom(CHUNK)
            digest.update(noise)
            assert file.write(noise) == CHUNK
    return digest.hexdigest()


def digest_of(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def eventually(true: Callable[[], object], seconds: float = 60) -> None:
    """Polls until it is true; ever more slowly, because in a guest a look may take a tenth of the processor."""
    began = time.monotonic()
    while not true():
        waited = time.monotonic() - began
        assert waited < seconds, f"not within {seconds} s"
        time.sleep(min(0.05 + waited / 20, 0.25))


def runs(name: str) -> bool:
    """Whether a process has this name (`comm` in proc(5))."""
    return any(procfs.name_of(pid) == name for pid in procfs.pids())


def process_state(pid: int) -> str:
    """One letter, as in proc(5): "D" if no signal ends its wait."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for that signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (number - 1) & 1)


def sparse_file(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def partitioned_image(path: Path, mebibytes: int = 16) -> Path:
    """An image with a GPT and two partitions."""
    sparse_file(path, mebibytes << 20)
    script = "label: gpt\nsize=4MiB\nsize=4MiB\n"
    subprocess.run(["sfdisk", "-q", str(path)], input=script, text=True, check=True)
    return path
