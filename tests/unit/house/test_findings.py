# SPDX-License-Identifier: GPL-2.0-or-later
"""findings/README.md lists all scripts, and each script can be run and names what it pins."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

FINDINGS = Path(__file__).resolve().parents[3] / "findings"
SCRIPTS = sorted(path.name for path in FINDINGS.glob("*.sh"))


def test_each_script_has_one_line_in_the_list() -> None:
    assert re.findall(r"^\| `(.*?)` \| \S.* \|$", (FINDINGS / "README.md").read_text(), re.MULTILINE) == SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_and_pins_its_packages(name: str) -> None:
    text = (FINDINGS / name).read_text()
    assert os.access(FINDINGS / name, os.X_OK)
    packages = re.search(r"^make_root (\S+) (.*(?:\\\n.*)*)", text, re.MULTILINE)
    assert packages
    assert "=" in packages[2]
