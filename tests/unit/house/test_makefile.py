# SPDX-License-Identifier: GPL-2.0-or-later
"""`make help` lists every target, and the documents name only targets that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MAKEFILE = (ROOT / "Makefile").read_text()
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "tests/lab/README.md")


def phony() -> set[str]:
    (names,) = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)
    return set(names.replace("\\\n", " ").split())


def listed() -> dict[str, str]:
    said = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"^make (\S+) +(.+)$", said, re.MULTILINE))


def test_every_target_is_listed_with_its_text() -> None:
    assert set(listed()) == phony()


def test_every_rule_without_a_file_is_phony() -> None:
    assert set(re.findall(r"^([a-z][\w.-]*):(?!=)", MAKEFILE, re.MULTILINE)) == phony()


def test_a_bare_make_still_runs_the_tests() -> None:
    (first,) = re.findall(r"\A(?:.*\n)*?([a-z][\w.-]*):(?!=)", MAKEFILE)
    assert first == "test"


@pytest.mark.parametrize("library", ["click", "pyroute2"])
def test_lowest_version_that_is_allowed_is_run_by_make_test(library: str) -> None:
    (lanes,) = re.findall(r"^LANES := (.*)", MAKEFILE, re.MULTILINE)
    assert "libraries-oldest" in lanes.split()
    (allowed,) = re.findall(rf'"{library}>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    (first,) = re.findall(rf"^{library}s='(\S+) ", (ROOT / "tests/unit/on_each_library").read_text(), re.MULTILINE)
    assert first == allowed


@pytest.mark.parametrize("target", ["test", "test-all", "boot", "boot-all", "root", "root-all", "matrix", "fresh"])
def test_target_that_needs_root_says_so_before_it_does_anything(target: str, tmp_path: Path) -> None:
    """Also a target that needs root only later: a user would wait for minutes to see it fail."""
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    make = shutil.which("make")
    assert make
    # No other program is found, so the target can do nothing else.
    done = subprocess.run([make, target], cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2
    first, *_ = done.stdout.splitlines()
    assert first == f"make {target}: needs root, for its networks and file systems: sudo make {target}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_names_only_targets_that_exist(document: str) -> None:
    named = re.findall(r"(?:`|^    (?:\$ )?)make ([a-z][\w.-]*)", (ROOT / document).read_text(), re.MULTILINE)
    assert set(named) <= phony()
