# SPDX-License-Identifier: GPL-2.0-or-later
"""Today's build and the one before, each as the interpreter and the folder that its code is imported from.

A measurement of a piece of code runs in a fresh process of a build. It must have that build's code and no other.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

import before
import cpu_time

OURS = "nbdattach"


@dataclass(frozen=True)
class Build:
    """`folder` holds the package nbdattach; empty if the interpreter finds it by itself."""

    name: str
    python: str
    folder: str = ""

    def command(self, code: str, *arguments: str) -> list[str]:
        return [self.python, "-c", code, *arguments]

    def run(self, code: str, *arguments: str) -> str:
        """Standard output."""
        command = self.command(code, *arguments)
        done = subprocess.run(command, env=self.environment(), cwd="/", capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{self.name}: {code!r}: {done.stderr}")
        return done.stdout

    def environment(self) -> dict[str, str]:
        """For a process that is to have this build. It must not be started in a folder with an nbdattach."""
        rest = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
        return {**rest, "PYTHONPATH": self.folder} if self.folder else rest


def of(nbdattach: str, build_before: str | None) -> list[Build]:
    """Ours, which is first, and the one before if there is one. Raises `RuntimeError` if Python finds another."""
    python = cpu_time.interpreter(nbdattach)
    found = [Build(OURS, python)]
    if build_before:
        found.append(Build(before.NAME, python, str(before.tree())))
    for build in found:
        package = build.run("import nbdattach; print(nbdattach.__file__)").strip()
        if (build.name == OURS) == package.startswith(str(before.tree())):
            raise RuntimeError(f"{build.name}: Python imports {package}")
    return found
