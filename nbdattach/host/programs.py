# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a program of the system, and waits for it. Most commands run none; so `subprocess` is imported only here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess


def run(
    *command: str,
    seconds: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    descriptors: Sequence[int] = (),
) -> subprocess.CompletedProcess[str]:
    """Its result, with any exit code, and all that it has printed. Raises OSError; TimeoutError after those seconds.

    It inherits these descriptors.
    """
    import subprocess

    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env=env,
            cwd=cwd,
            pass_fds=descriptors,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{command[0]} has not ended within {seconds:g} s") from None
