# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of the products built from the tree. Those of the installed package run in a guest, which they may fill."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dpkg import NBDATTACH, install, run
from tool import eventually

from nbdattach.monitor import control

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def deb() -> Path:
    """The package that `make deb` has built."""
    (found,) = (ROOT / "dist").glob("nbdattach_*_all.deb")
    return found


@pytest.fixture(scope="session")
def before_rooms() -> Path:
    """The package of a release with all modules in one folder."""
    return ROOT / "dist/before/nbdattach.deb"


@pytest.fixture(scope="session")
def guest() -> None:
    if "nbdattach.lab=1" not in Path("/proc/cmdline").read_text():
        pytest.exit("this test installs packages, so it runs in a guest only: see tests/lab/README.md", returncode=4)
    subprocess.run(["modprobe", "nbd"], check=True)


@pytest.fixture
def installed(guest: None, deb: Path) -> Iterator[None]:
    """The package is installed, and afterwards nothing is attached, and no monitor runs."""
    if not Path(NBDATTACH).exists():
        install(deb)
    yield
    if not Path(NBDATTACH).exists():
        install(deb)
    if Path("/mnt").is_mount():
        run("umount", "/mnt")
    run(NBDATTACH, "disconnect", "--force", "--all")
    assert json.loads(run(NBDATTACH, "status", "--json").stdout) == []
    if listener := control.listener():
        run("kill", str(listener))
    eventually(lambda: control.listener() is None)
