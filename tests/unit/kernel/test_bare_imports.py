# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process in a bare interpreter imports costs memory of each attachment, or time of each command."""

from __future__ import annotations

import subprocess

import pytest

from nbdattach.host.spawn import bare_python

PROCESSES = [
    ("kernel.worker", "main"),
    ("kernel.guard", "guard_main"),
    ("kernel.flush", "flush_main"),
    ("kernel.leftovers", "tidy_main"),
    ("host.blocking_child", "open_main"),
]
# Modules of Python that cost memory, and that the interpreter does not import by itself.
EXPENSIVE = {"contextlib", "ctypes", "enum", "re", "signal", "socket", "subprocess", "threading", "typing"}


@pytest.mark.parametrize(("module", "function"), PROCESSES)
def test_bare_process_imports_next_to_nothing(module: str, function: str) -> None:
    command = bare_python(module, function)
    code = command.index("-c") + 1
    command[code] = command[code].removesuffix(f"{function}(sys.argv[1:])") + "print(*sys.modules)"
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert f"nbdattach.{module}" in imported
    assert imported & EXPENSIVE == set()
