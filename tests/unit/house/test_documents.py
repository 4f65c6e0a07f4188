# SPDX-License-Identifier: GPL-2.0-or-later
"""README.md, CONTRIBUTING.md and the files beside them describe the tree correctly."""

from __future__ import annotations

import ast
import configparser
import re
import tomllib
from pathlib import Path

import pytest

import nbdattach

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("doc/*.md")])


PACKAGE = Path(nbdattach.__file__).parent


def rooms() -> dict[str, tuple[str, str]]:
    """The first lines of each room: its task, and the rooms that it may import."""
    found = {}
    for path in PACKAGE.glob("*/__init__.py"):
        what, may = [
            " ".join(part.split()) for part in str(ast.get_docstring(ast.parse(path.read_text()))).split("\n\n")
        ]
        found[f"{path.parent.name}/"] = (what, may.removeprefix("May import: ").removesuffix("."))
    return found


def test_map_of_the_source_is_what_the_rooms_say() -> None:
    rows = re.findall(r"^\| `(\w+/)` \| (.*?) \| (.*?) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert {room: (what, may) for room, what, may in rows} == rooms()


def test_map_of_the_source_names_each_module_that_is_in_no_room() -> None:
    _, _, text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Map of the source")
    assert {f"{path.name}" for path in PACKAGE.glob("*.py")} <= set(re.findall(r"`(\w+\.py)`", text))


@pytest.mark.parametrize("page", PAGES)
def test_link_leads_to_a_file_of_the_tree(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


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


# -- citations in tests --------------------------------------------------------------------------------------------

TESTS = sorted((ROOT / "tests").rglob("*.py"))


def rows_of_the_protocol() -> set[int]:
    return {int(row) for row in re.findall(r"^\| (\d+) \|", (ROOT / "doc/protocol.md").read_text(), re.MULTILINE)}


def test_each_row_of_the_protocol_is_held_by_a_test_and_each_test_names_a_row_that_there_is() -> None:
    cited = {int(row) for path in TESTS for row in re.findall(r"mark\.row\((\d+)\)", path.read_text())}
    assert cited == rows_of_the_protocol()


def test_promise_that_is_named_is_in_the_contract() -> None:
    contract = (ROOT / "doc/contract.md").read_text()
    promises = set(re.findall(r"^(\d+)\. \*\*", contract, re.MULTILINE))
    texts = [path.read_text() for path in [*TESTS, *PACKAGE.rglob("*.py")]]
    assert {number for text in texts for number in re.findall(r"[Pp]romise (\d+)", text)} <= promises
