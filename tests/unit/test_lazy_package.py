# SPDX-License-Identifier: GPL-2.0-or-later
"""pyroute2 is imported in part, and whole as soon as anybody asks for more of it."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(program: str) -> str:
    """What a new interpreter prints that runs it."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_netlink_loads_no_more_of_pyroute2_than_it_uses() -> None:
    loaded = run(
        "import nbdattach.netlink, sys; print(*(name for name in sys.modules if name.startswith('pyroute2.')))"
    )
    assert "pyroute2.netlink.generic" in loaded.split()
    assert not {"pyroute2.iproute", "pyroute2.ndb", "pyroute2.netlink.rtnl"} & set(loaded.split())


@pytest.mark.parametrize(
    "program",
    [
        "import pyroute2; print(pyroute2.IPRoute.__name__)",
        "from pyroute2 import IPRoute; print(IPRoute.__name__)",
        "import pyroute2.iproute; print(pyroute2.IPRoute.__name__)",
    ],
)
def test_a_program_that_imports_us_has_all_of_pyroute2(program: str) -> None:
    assert run(f"import nbdattach.netlink; {program}") == "IPRoute"


def test_a_program_that_has_imported_pyroute2_before_us_keeps_it() -> None:
    assert (
        run("import pyroute2; before = pyroute2; import nbdattach.netlink, pyroute2; print(before is pyroute2)")
        == "True"
    )


def test_modules_of_the_package_are_its_attributes_as_ever() -> None:
    assert (
        run("import nbdattach.netlink, pyroute2; print(pyroute2.netlink.generic.__name__)")
        == "pyroute2.netlink.generic"
    )


def test_a_package_that_is_missing_is_missing() -> None:
    program = "from nbdattach import lazy_package; lazy_package.defer('no_such_package'); import no_such_package"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'no_such_package'"
