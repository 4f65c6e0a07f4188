# SPDX-License-Identifier: GPL-2.0-or-later
"""README's commands for a new user work on a fresh Debian 12 and 13, word for word, and leave nothing behind."""

from __future__ import annotations

import pytest
from readme import hooks, tells, way
from root import Root

from nbdattach import __version__

pytestmark = pytest.mark.parametrize("release", ["bookworm", "trixie"])
CHECKOUT = "/home/user/nbdattach"
WAYS = ["As a Debian package", "With pipx 1.0 or later", "With a venv"]
# By name, except in the checkout and outside of disks. A package that was removed stays in dpkg's log.
LEFT = "find / -xdev -iname '*nbdattach*' -not -path '/home/user/nbdattach*' -not -path '/proc/*' -not -path '/sys/*'"
# In the checkout: files that its user could not remove.
OF_OTHERS = "find . ! -user user"
# The machine's kernel may lack nbd: then doctor reports it and ends with 6.
DOCTOR = "sudo nbdattach doctor || [ $? = 6 ]"


@pytest.mark.parametrize("heading", WAYS)
def test_it_installs_works_and_leaves_nothing(root: Root, heading: str) -> None:
    commands = way(heading)
    root.run(commands.install, folder=CHECKOUT)
    works(root)
    root.run(commands.remove, folder=CHECKOUT)
    assert root.run(LEFT, "root") == ""
    assert root.run(OF_OTHERS, folder=CHECKOUT) == ""
    root.run("make clean", folder=CHECKOUT)


def works(root: Root) -> None:
    assert root.run("nbdattach --version") == f"nbdattach {__version__}\n"
    said = root.run("nbdattach connect", code=2)
    assert said == "nbdattach connect: Missing argument 'TARGET'.\n(see nbdattach connect --help)\n"
    said = root.run(DOCTOR)
    assert "ok  permission: running as root\n" in said
    assert "ok  netlink: pyroute2 is installed\n" in said
    assert "Traceback" not in said
    root.install("man-db")
    for page in ("8 nbdattach", "5 nbdtab", "7 nbdattach-root"):
        assert root.run(f"man --where {page}").count("\n") == 1


def test_the_demo_runs(root: Root) -> None:
    assert tells("make demo")
    assert root.run("make demo", folder=CHECKOUT).endswith("compared on the server.\n")


@pytest.mark.parametrize("target", ["lint", "unit"])
def test_what_a_developer_types_first(root: Root, target: str) -> None:
    assert tells(f"make {target}")
    root.run(f"make {target}", folder=CHECKOUT)


def test_hooks_of_git_run_as_contributing_tells(root: Root) -> None:
    root.run(f"make lint\n{hooks()}", folder=CHECKOUT)
    commit = "git -c user.name=user -c user.email=user@nbdattach.invalid commit --quiet --message test"
    root.run(f"sed -i '1a # A comment.' nbdattach/clock.py; git add nbdattach; {commit}", folder=CHECKOUT)
    said = root.run(f"echo 'import os' >>nbdattach/clock.py; git add nbdattach; {commit}", folder=CHECKOUT, code=1)
    assert "ruff check" in said and "Found " in said


def test_a_build_that_sudo_pip_has_left_is_told_with_the_command_that_helps(root: Root) -> None:
    root.run("mkdir build", "root", CHECKOUT)
    said = root.run("make --old-file=provision-deb deb", folder=CHECKOUT, code=2)
    assert said.startswith("make deb: build is not yours, as sudo pip leaves it: sudo rm -r build\n")
    said = root.run("make clean", folder=CHECKOUT, code=2)
    assert said.startswith("make clean: build is not yours, as sudo pip leaves it: sudo rm -r build\n")
    root.run("sudo rm -r build\nmake clean", folder=CHECKOUT)


def test_without_root_and_sudo_the_command_that_helps_is_told(root: Root) -> None:
    root.run("SUDO_FORCE_REMOVE=yes dpkg --purge sudo", "root")
    said = root.run("make deb", folder=CHECKOUT, code=2)
    assert "\nprovision: only root can install packages, and there is no sudo; as root: apt-get install " in said
