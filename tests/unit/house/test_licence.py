# SPDX-License-Identifier: GPL-2.0-or-later
"""The licence: its text is whole, each place that names it names the same one, and each source file says it."""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LICENCE = "GPL-2.0-or-later"
LINE = f"SPDX-License-Identifier: {LICENCE}"
# README.md states the licence of these, and of all pages of text (*.md).
EXEMPT = {
    "LICENSE",
    ".gitignore",
    "setup.cfg",  # setuptools drops comments from it in a source distribution
    "debian/changelog",
    "debian/control",
    "debian/copyright",
    "debian/nbdattach.lintian-overrides",
    "debian/source/format",
    "nbdattach/py.typed",
    "tests/diskless/guest/etc/fstab",
    "tests/diskless/guest/etc/hosts",
    "tests/unit/cli/transcript.txt",  # compared byte by byte with the output of the command line
}
IGNORED = [".git", "PKG-INFO", *(line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines())]


def is_ignored(path: Path) -> bool:
    return any(fnmatch(path.name, pattern) or fnmatch(str(path), pattern) for pattern in IGNORED)


def files() -> Iterator[Path]:
    """Every file that git does not ignore; found without git, because a source distribution has none."""
    for folder, folders, names in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        folders[:] = [name for name in folders if not is_ignored(here / name)]
        yield from (here / name for name in names if not is_ignored(here / name))


def is_marked(path: Path) -> bool:
    """In its first line, or in the second if the first is for a program that runs the file."""
    first, second, *_ = [*(ROOT / path).read_text().splitlines(), "", ""]
    return LINE in (second if first.startswith(("#!", "#compdef")) else first)


def test_the_files_are_found() -> None:
    """As a test of nothing would succeed."""
    assert {Path("nbdattach/cli/main.py"), Path("man/nbdattach.8"), Path("Makefile"), Path(".ci/run")} <= set(files())


def test_no_source_file_is_without_its_licence() -> None:
    unmarked = {str(path) for path in files() if path.suffix != ".md" and not is_marked(path)}
    assert unmarked <= EXEMPT


def test_no_exemption_outlives_its_file() -> None:
    assert {str(path) for path in files()} >= EXEMPT


def test_text_of_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "GNU GENERAL PUBLIC LICENSE\n                       Version 2, June 1991" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text.splitlines()) == 339


@pytest.mark.parametrize(
    ("document", "words"),
    [("README.md", LICENCE), ("CONTRIBUTING.md", LICENCE), ("debian/copyright", "Files: *\nCopyright:")],
)
def test_licence_is_named(document: str, words: str) -> None:
    assert words in (ROOT / document).read_text()


def test_licence_of_the_distributions_is_this_one() -> None:
    """In the place that setuptools of Debian 12 and the newest both read; pyproject.toml must leave it to that file."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert settings["metadata"]["license"] == LICENCE
    assert 'dynamic = ["version", "license"]' in (ROOT / "pyproject.toml").read_text()


def test_licence_of_the_package_is_this_one() -> None:
    """In Debian's words."""
    named = [line for line in (ROOT / "debian/copyright").read_text().splitlines() if line.startswith("License: ")]
    assert named == ["License: GPL-2+", "License: GPL-2+"]
