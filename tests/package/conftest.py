"""Tests of what is built from the tree. Those of the installed package run in a guest, which they may fill."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def deb() -> Path:
    """The package that `make deb` has built."""
    (found,) = (ROOT / "dist").glob("nbdattach_*_all.deb")
    return found


@pytest.fixture(scope="session")
def guest() -> None:
    if "nbdattach.lab=1" not in Path("/proc/cmdline").read_text():
        pytest.exit("this test installs packages, so it runs in a guest only: see tests/lab/README.md", returncode=4)
    subprocess.run(["modprobe", "nbd"], check=True)
