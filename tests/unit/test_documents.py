# SPDX-License-Identifier: GPL-2.0-or-later
"""What README.md, CONTRIBUTING.md and the files beside them say of the tree is so."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path

import pytest

import nbdattach

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.name for path in ROOT.glob("*.md"))


def map_of_the_source() -> list[str]:
    rows = re.findall(r"^\| (`[\w/]+\.py`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([\w/]+\.py)`", row)]


def modules() -> list[str]:
    package = Path(nbdattach.__file__).parent
    found = [str(path.relative_to(package)) for path in package.rglob("*.py")]
    return [path for path in found if not path.endswith("/__init__.py")]


def test_map_of_the_source_has_each_module_once() -> None:
    assert sorted(map_of_the_source()) == sorted(modules())


@pytest.mark.parametrize("page", PAGES)
def test_link_leads_to_a_file_of_the_tree(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_path_in_a_page_is_in_the_tree(page: str) -> None:
    """`tests/…`, `man/…` and the like are files or folders of this tree."""
    named = re.findall(
        r"`((?:tests|man|systemd|initramfs|completions|debian|nbdattach)/[\w./@-]*)`", (ROOT / page).read_text()
    )
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_lowest_version_of_a_library_is_the_one_that_is_declared(page: str) -> None:
    named = re.findall(r"(click|pyroute2)\s([\d.]*\d) or\s+later", (ROOT / page).read_text())
    declared = re.findall(r'"(click|pyroute2)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert set(named) <= set(declared)


def test_hooks_of_pre_commit_fetch_nothing() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (.*)", text) == ["local"]
    hooks = re.findall(r"entry: \.venv/bin/(\w+).*\n +language: (\w+)", text)
    assert hooks == [("ruff", "system"), ("ruff", "system"), ("mypy", "system")]


def settings_of_editors() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read_string("[top]\n" + (ROOT / ".editorconfig").read_text())
    return parser


def test_editors_and_ruff_agree_on_the_length_of_lines() -> None:
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    assert settings_of_editors().getint("*.py", "max_line_length") == ruff["line-length"]


def test_editors_keep_the_tabs_that_make_needs() -> None:
    assert settings_of_editors()["{Makefile,rules}"]["indent_style"] == "tab"
    for name in ("Makefile", "debian/rules"):
        assert re.search(r"^\t", (ROOT / name).read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_no_line_of_a_page_but_a_row_is_longer_than_editors_allow(page: str) -> None:
    longest = settings_of_editors().getint("*.md", "max_line_length")
    lines = (ROOT / page).read_text().splitlines()
    assert [line for line in lines if len(line) > longest and not line.startswith("|")] == []
