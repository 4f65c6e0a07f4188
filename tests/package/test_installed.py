# SPDX-License-Identifier: GPL-2.0-or-later
"""What is where it is looked for, once the package is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from dpkg import CLEAN, NBDATTACH, run
from servers import nbdkit
from shells import SHELLS, shell

pytestmark = pytest.mark.usefixtures("installed")


@pytest.mark.parametrize("name", SHELLS)
def test_shells_find_the_completions_by_themselves(name: str, tmp_path: Path) -> None:
    with nbdkit("memory", "1M") as server:
        run(NBDATTACH, "connect", server.uri, "/dev/nbd5")
        with shell(name, tmp_path, CLEAN["PATH"], installed=True) as user:
            user.completes("nbdattach disconnect ", "nbdattach disconnect /dev/nbd5")
        run(NBDATTACH, "disconnect", "/dev/nbd5")


def test_man_pages_and_program_of_the_system(tmp_path: Path) -> None:
    assert Path(NBDATTACH).read_text().startswith("#!/usr/bin/python3\n")
    for page in Path("/usr/share/man").glob("man*/nbd*"):
        run("mandoc", "-T", "lint", "-W", "error", str(page))
    assert Path("/usr/share/man/man8/nbdattach.8.gz").exists()
    assert run(NBDATTACH, "--version").stdout.startswith("nbdattach ")


def test_doctor_finds_the_rules_and_netlink() -> None:
    said = run(NBDATTACH, "doctor").stdout
    assert "ok  netlink: usable" in said
