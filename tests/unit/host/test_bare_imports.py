# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process in a bare interpreter imports costs memory of each attachment, or time of each command."""

from __future__ import annotations

import subprocess

import pytest

from nbdattach.host.spawn import bare_python

PROCESSES = [
    ("kernel.worker", "main"),
    ("kernel.leftovers", "tidy_main"),
]
# Modules of Python that cost memory, and that the interpreter does not import by itself.
EXPENSIVE = {"contextlib", "ctypes", "enum", "re", "signal", "socket", "struct", "subprocess", "threading", "typing"}


def imported_by(module: str, function: str) -> set[str]:
    """All modules that a process has imported before it runs that function."""
    command = bare_python(module, function)
    code = command.index("-c") + 1
    command[code] = command[code].removesuffix(f"{function}(sys.argv[1:])") + "print(*sys.modules)"
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(("module", "function"), PROCESSES)
def test_bare_process_imports_next_to_nothing(module: str, function: str) -> None:
    imported = imported_by(module, function)
    assert f"nbdattach.{module}" in imported
    assert imported & EXPENSIVE == set()


# What a relay needs to dial, though other modules import it only if there is TLS.
DIALLING = ["certificate", "credentials", "openssl_errors", "stream", "tls", "tls_context", "tls_failures"]


def test_relay_has_loaded_all_that_it_needs_to_dial_before_its_first_order() -> None:
    """The disk that this machine runs from may be away when it dials again."""
    assert imported_by("relay.process", "main") >= {f"nbdattach.connection.{name}" for name in DIALLING}
