# SPDX-License-Identifier: GPL-2.0-or-later
"""One look for processes that have a device open, on a machine whose processes hold thousands of descriptors."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import before
import builds
from builds import Build
from figures import Row

DESCRIPTORS = 8400
HOLDERS = 12
# Regular files: a look asks the kernel about each one that has a path.
_HOLD = """
import os, sys
place, count = sys.argv[1], int(sys.argv[2])
held = [os.open(place, os.O_RDONLY) for _ in range(count)]
print(len(held), flush=True)
sys.stdin.read()
"""
# Processes of the machine beside the holders would be in one figure and not in another. The first look imports.
_LOOK = """
import sys, time
from nbdattach.host import procfs
module = procfs
if not hasattr(procfs, "openers"):
    from nbdattach.host import open_files as module
pids = [int(one) for one in sys.argv[2:]]
assert hasattr(procfs, sys.argv[1])
setattr(procfs, sys.argv[1], lambda: pids)
module.openers({"43:0"})
before = time.process_time()
found = module.openers({"43:0"})
print((time.process_time() - before) * 1000)
assert found == []
"""
_PIDS = {builds.OURS: "pids", before.NAME: "_pids"}


def measure(nbdattach: str, build_before: str | None, rounds: int) -> list[Row]:
    both = builds.of(nbdattach, build_before)
    samples: dict[str, list[float]] = {build.name: [] for build in both}
    row = Row(f"{DESCRIPTORS} descriptors", "ms", builds.OURS, samples, {builds.OURS: "ours <= 100"})
    with _held() as pids:
        for _ in range(rounds):
            for build in both:
                row.samples[build.name].append(_look(build, pids))
    return [row]


def _look(build: Build, pids: list[int]) -> float:
    return float(build.run(_LOOK, _PIDS[build.name], *map(str, pids)))


@contextmanager
def _held() -> Iterator[list[int]]:
    """Processes that hold so many descriptors together, besides their standard files."""
    each = DESCRIPTORS // HOLDERS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft > each + 10, f"a process may have {soft} open files"
    with tempfile.NamedTemporaryFile(prefix="bench-") as file:
        command = [sys.executable, "-c", _HOLD, file.name, str(each)]
        pipe = subprocess.PIPE
        holders = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(HOLDERS)]
        try:
            for holder in holders:
                assert holder.stdout is not None and int(holder.stdout.readline()) == each
            yield [holder.pid for holder in holders]
        finally:
            for holder in holders:
                holder.communicate("")
