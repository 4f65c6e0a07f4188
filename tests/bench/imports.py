# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions that a command's imports take, counted by valgrind: unlike a time, the same on a busy machine.

A count is of a whole interpreter that imports those modules of ours that the command has at its end, and ends.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile

import before
import builds
from builds import Build
from figures import Row
from servers import nbdkit

_CALLGRIND = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
# The console script's first step, which the build before does not have.
_FIRST = (
    "import gc; from nbdattach import __main__ as main; "
    "gc.set_threshold(getattr(main, '_BETWEEN_LOOKS', gc.get_threshold()[0])); "
)
# A connect needs the driver, so these are named. It attaches by netlink, without TLS.
_CONNECT = (
    *("nbdattach.cli.main", "nbdattach.cli.connect", "nbdattach.cli.render", "nbdattach.api"),
    *("nbdattach.operations.attachment", "nbdattach.backends.by_netlink"),
)
_MODULES_OF = """
import contextlib, io, sys
from nbdattach.cli.main import run
with contextlib.redirect_stdout(io.StringIO()):
    code = run(sys.argv[1:])
print(*(name for name in sys.modules if name.startswith("nbdattach")))
sys.exit(code)
"""
# Millions.
AIMS = {"connect": 290, "info": 240, "list": 240, "check": 240}


def can_count() -> bool:
    return shutil.which("valgrind") is not None


def measure(nbdattach: str, build_before: str | None) -> list[Row]:
    both = builds.of(nbdattach, build_before)
    python = both[0].python
    bare = {name: _millions([python, "-c", code], both[0].environment()) for name, code in _BARE.items()}
    with nbdkit("memory", "1M") as server:
        return [_row(command, server.uri, both, bare) for command in AIMS]


_BARE = {"import click": "import click", "bare interpreter": "pass"}


def _row(command: str, uri: str, both: list[Build], bare: dict[str, float]) -> Row:
    counts = {}
    for build in both:
        modules = _CONNECT if command == "connect" else build.run(_MODULES_OF, command, uri).split()
        counts[build.name] = _millions(build.command(_FIRST + f"import {', '.join(modules)}"), build.environment())
    ours = counts.pop(builds.OURS)
    samples = {builds.OURS: [ours]} | {name: [count] for name, count in {**counts, **bare}.items()}
    aims = {builds.OURS: f"ours <= {AIMS[command]}", before.NAME: "<= 1"}
    aims = {name: aim for name, aim in aims.items() if name in samples}
    return Row(f"imports of {command}", "M", builds.OURS, samples, aims)


def _millions(command: list[str], environment: dict[str, str]) -> float:
    """Instructions of a second run: the first one compiles modules."""
    with tempfile.TemporaryDirectory(prefix="bench-") as bytecode:
        environment = {**environment, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONHASHSEED": "0"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        subprocess.run(command, env=environment, cwd="/", check=True)
        done = subprocess.run(
            [*_CALLGRIND, *command], env=environment, cwd="/", check=True, capture_output=True, text=True
        )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if not found:
        raise RuntimeError(f"valgrind counted nothing: {done.stderr}")
    return int(found[1]) / 1e6
