# SPDX-License-Identifier: GPL-2.0-or-later
"""CPU time of the commands that need no kernel driver, beside other tools that do the same, and the build before."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import before
from figures import Row
from servers import Server, nbdkit

Commands = dict[str, list[str]]
OURS = "nbdattach"
MANY = 100


def cpu_milliseconds(command: list[str], environment: dict[str, str]) -> float:
    """User and system time of the command and of the processes that it waited for."""
    none = subprocess.DEVNULL
    process = subprocess.Popen(command, env=environment, stdin=none, stdout=none, stderr=none)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return (usage.ru_utime + usage.ru_stime) * 1000


def compare(what: str, commands: Commands, aims: dict[str, str], rounds: int) -> Row:
    samples: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory(prefix="bench-") as bytecode:
        environment = with_bytecode(bytecode)
        for number in range(-1, rounds):  # the first one compiles, and warms the page cache
            for name, command in commands.items():
                used = cpu_milliseconds(command, environment)
                if number >= 0:
                    samples[name].append(used)
    return Row(what, "ms", OURS, samples, aims)


def with_bytecode(folder: str) -> dict[str, str]:
    """The environment in which Python keeps compiled modules in `folder`.

    An installed package comes compiled. A checkout may not be, and compiling costs more than running.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": folder}


def interpreter(nbdattach: str) -> str:
    """The interpreter that runs the console script."""
    first = Path(nbdattach).read_text().splitlines()[0]
    return first.removeprefix("#!").split()[0]


def starting(nbdattach: str, build_before: str | None, rounds: int) -> list[Row]:
    python = interpreter(nbdattach)
    commands = {
        OURS: [nbdattach, "--help"],
        "import click": [python, "-c", "import click"],
        "bare interpreter": [python, "-c", "pass"],
        **with_before(build_before, "--help"),
    }
    return [compare("--help", commands, {"import click": "<= 1.5"}, rounds)]


def with_before(build_before: str | None, *arguments: str) -> Commands:
    return {before.NAME: [build_before, *arguments]} if build_before else {}


def asking(nbdattach: str, build_before: str | None, server: Server, rounds: int) -> list[Row]:
    """`info` and `list` against a server over TCP or a Unix socket."""
    way = "Unix" if isinstance(server.place, str) else "TCP"
    info = {
        OURS: [nbdattach, "info", server.uri],
        "nbdinfo": ["nbdinfo", server.uri],
        **with_before(build_before, "info", server.uri),
    }
    listing = {
        OURS: [nbdattach, "list", server.uri],
        "nbd-client -l": ["nbd-client", "-l", *_for_nbd_client(server)],
        "nbdinfo --list": ["nbdinfo", "--list", server.uri],
        **with_before(build_before, "list", server.uri),
    }
    return [
        compare(f"info, {way}", info, {"nbdinfo": "ours <= 80", before.NAME: "<= 1"}, rounds),
        compare(f"list, {way}", listing, {before.NAME: "<= 1"}, rounds),
    ]


def _for_nbd_client(server: Server) -> list[str]:
    return ["-unix", server.place] if isinstance(server.place, str) else [server.place[0], str(server.place[1])]


def checking(nbdattach: str, build_before: str | None, server: Server, rounds: int) -> list[Row]:
    """Many servers in one command; for the command they are as many, though it is one here."""
    one = [nbdattach, "check", server.uri]
    many = {OURS: [nbdattach, "check", *[server.uri] * MANY], "check of one": one}
    rows = [compare(f"check of {MANY}", many, {"check of one": "<= 2.0"}, rounds)]
    if build_before:
        both = {OURS: one, **with_before(build_before, "check", server.uri)}
        rows.append(compare("check of one", both, {before.NAME: "<= 1"}, rounds))
    return rows


def measure(nbdattach: str, build_before: str | None, rounds: int) -> list[Row]:
    """`build_before`: its console script, if there is one."""
    rows = starting(nbdattach, build_before, rounds)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for unix in ("", f"{folder}/sock"):
            with nbdkit("memory", "64M", unix=unix) as server:
                rows += asking(nbdattach, build_before, server, rounds)
                if not unix:
                    rows += checking(nbdattach, build_before, server, rounds)
    return rows
