# SPDX-License-Identifier: GPL-2.0-or-later
"""We import a part of pyroute2, and a program that imports us, and pyroute2, has all of it."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(program: str) -> str:
    """The output of a new interpreter that runs it."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


PYROUTE2 = "sorted(name for name in sys.modules if name.startswith('pyroute2'))"


# That module, and those without which it cannot be.
SMALL = ("netlink", "netlink.exceptions", "common", "config", "config.version")


def test_one_module_of_pyroute2_is_loaded_and_none_is_left() -> None:
    program = f"""
import builtins, sys
seen, load = set(), builtins.__import__
def noting(name, *rest):
    made = load(name, *rest)
    seen.update({PYROUTE2})
    return made
builtins.__import__ = noting
import nbdattach.kernel.dead_links
print(*seen)
print(*{PYROUTE2})
"""
    seen, left = run(program).split("\n")
    assert {"pyroute2.netlink"} <= set(seen.split()) <= {"pyroute2", *(f"pyroute2.{name}" for name in SMALL)}
    assert left == ""


@pytest.mark.parametrize(
    "program",
    [
        "import pyroute2; print(pyroute2.IPRoute.__name__)",
        "from pyroute2 import IPRoute; print(IPRoute.__name__)",
        "import pyroute2.iproute; print(pyroute2.IPRoute.__name__)",
    ],
)
def test_a_program_that_imports_us_has_all_of_pyroute2(program: str) -> None:
    assert run(f"import nbdattach.kernel.dead_links; {program}") == "IPRoute"


def test_a_program_that_has_imported_pyroute2_before_us_keeps_it() -> None:
    assert (
        run("import pyroute2; was = pyroute2; import nbdattach.kernel.dead_links, pyroute2; print(was is pyroute2)")
        == "True"
    )


def test_modules_of_the_package_are_its_attributes_as_ever() -> None:
    assert (
        run("import nbdattach.kernel.dead_links, pyroute2; print(pyroute2.netlink.generic.__name__)")
        == "pyroute2.netlink.generic"
    )


def test_a_package_that_is_missing_is_missing() -> None:
    program = "from nbdattach.kernel.bare_package import bare\nwith bare('no_such_package'): import no_such_package"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'no_such_package'"
