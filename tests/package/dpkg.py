# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian package as an administrator handles it, and the installed command."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

NBDATTACH = "/usr/bin/nbdattach"
# Nothing of the environment of the tests: no other Python, no checkout.
CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}


def run(*command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Must end with that code."""
    done = subprocess.run(
        command, env=CLEAN, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr, done.stderr
    return done


def install(deb: Path) -> str:
    """All that is said at it. Works the same for the first time and for an upgrade."""
    done = run("dpkg", "--install", "--force-unsafe-io", "--no-triggers", str(deb))
    return done.stdout + done.stderr


def remove() -> str:
    """The standard error."""
    return run("dpkg", "--remove", "--no-triggers", "nbdattach").stderr


def status(device: str) -> Any:
    """The one object of `status --json`."""
    return json.loads(run(NBDATTACH, "status", "--json", device).stdout)[0]
