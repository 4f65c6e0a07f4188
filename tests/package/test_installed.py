# SPDX-License-Identifier: GPL-2.0-or-later
"""Once the package is installed, each file is where programs look for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dpkg import CLEAN, NBDATTACH, run
from servers import nbdkit
from shells import SHELLS, shell

pytestmark = pytest.mark.usefixtures("installed")
# The answer to each command line, the same with each click.
TRANSCRIPT = (Path(__file__).resolve().parents[1] / "unit/cli/transcript.txt").read_text()


@pytest.mark.parametrize("line", ["", "ls", "connect", "connect --retry-for 5M db1"])
def test_usage_error_is_the_same_text_with_the_click_of_this_system(line: str) -> None:
    asked = re.escape(f"$ nbdattach {line}".rstrip())
    (written,) = re.findall(rf"^{asked}\n((?:2> .*\n)+)exit 2$", TRANSCRIPT, re.MULTILINE)
    done = run(NBDATTACH, *line.split(), code=2)
    assert done.stdout == ""
    assert done.stderr == re.sub("^2> ", "", written, flags=re.MULTILINE)


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
