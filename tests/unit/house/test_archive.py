# SPDX-License-Identifier: GPL-2.0-or-later
"""tests/lab/archive: the tests use the same package archive as this machine's apt; no host's name is in the tree."""

import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

TREE = Path(__file__).resolve().parents[3]
RELEASE = subprocess.run(["sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME"], capture_output=True, text=True)
CODENAME = RELEASE.stdout.strip()


class Apt:
    """Separate sources, in place of the machine's."""

    def __init__(self, folder: Path):
        self.list = folder / "sources.list"
        self.parts = folder / "parts"
        self.config = folder / "apt.conf"
        self.parts.mkdir()
        (folder / "lists").mkdir()
        self.list.touch()
        self.config.write_text(
            f'Dir::Etc::SourceList "{self.list}";\n'
            f'Dir::Etc::SourceParts "{self.parts}";\n'
            f'Dir::State::Lists "{folder}/lists";\n'
        )

    def ask(self, *words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [TREE / "tests/lab/archive", *words],
            env=os.environ | {"APT_CONFIG": str(self.config)},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def apt(tmp_path: Path) -> Apt:
    return Apt(tmp_path)


def test_one_line_sources_are_read(apt: Apt) -> None:
    apt.list.write_text(
        f"# deb http://gone.invalid/debian {CODENAME} main\n"
        f"deb [arch=amd64] http://mirror.invalid/debian/ {CODENAME} main contrib\n"
        f"deb http://safe.invalid/debian-security {CODENAME}-security main\n"
    )
    assert apt.ask() == (0, "http://mirror.invalid/debian\n", "")
    assert apt.ask("security") == (0, "http://safe.invalid/debian-security\n", "")


def test_deb822_sources_are_read(apt: Apt) -> None:
    (apt.parts / "debian.sources").write_text(
        "Types: deb deb-src\nURIs: http://mirror.invalid/debian\n"
        f"Suites: {CODENAME} {CODENAME}-updates\nComponents: main\n\n"
        "Types: deb\nURIs: http://off.invalid/debian\nSuites: stable-security\nComponents: main\nEnabled: no\n\n"
        "Types: deb\nURIs: http://safe.invalid/debian-security\nSuites: stable-security\nComponents: main\n"
    )
    assert apt.ask() == (0, "http://mirror.invalid/debian\n", "")
    assert apt.ask("security") == (0, "http://safe.invalid/debian-security\n", "")


def test_a_vendor_with_debians_suite_is_not_taken_for_debian(apt: Apt) -> None:
    apt.list.write_text(
        f"deb http://vendor.invalid {CODENAME} main\n"
        f"deb http://mirror.invalid/debian {CODENAME} main\n"
        f"deb http://mirror.invalid/debian {CODENAME}-updates main\n"
    )
    assert apt.ask() == (0, "http://mirror.invalid/debian\n", "")


def test_a_mirror_list_is_followed(apt: Apt, tmp_path: Path) -> None:
    (tmp_path / "mirrors").write_text("# near\nhttp://mirror.invalid/debian/\n")
    apt.list.write_text(f"deb mirror+file:{tmp_path}/mirrors {CODENAME} main\n")
    assert apt.ask() == (0, "http://mirror.invalid/debian\n", "")


def test_a_source_line_is_of_the_suites_own_archive(apt: Apt) -> None:
    apt.list.write_text(
        f"deb http://mirror.invalid/debian {CODENAME} main\n"
        f"deb http://safe.invalid/debian-security {CODENAME}-security main\n"
    )
    key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    assert apt.ask("source", "trixie") == (0, f"deb {key} http://mirror.invalid/debian trixie main\n", "")
    assert apt.ask("source", "trixie-security")[1] == (
        f"deb {key} http://safe.invalid/debian-security trixie-security main\n"
    )


def test_no_archive_is_said_not_guessed(apt: Apt) -> None:
    assert apt.ask() == (1, "", "archive: apt's sources name no main archive of Debian\n")
    assert apt.ask("source", "trixie-security") == (
        1,
        "",
        "archive: apt's sources name no security archive of Debian\n",
    )


# Made by tools, or of an environment.
MADE = re.compile(r"\.git|\.venv.*|build|dist|.*\.egg-info|__pycache__|\.\w+_cache|\.hypothesis|\.pybuild")
URI_HOST = re.compile(rb"://(?:[^/@\s]*@)?([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+)")
# Names that exist nowhere; addresses of the machine itself, of private networks and of documents (RFC 1918, 5737).
OURS = re.compile(rb"(.*\.)?(invalid|example|test)|(127|10)(\.\d+){3}|192\.(168|0)(\.\d+){2}")
# Targets of links in documents. Nothing is fetched from there.
DOCUMENTS = {
    b"www.debian.org": {"debian/copyright"},
    b"systemd.io": {"nbdattach/host/storage_daemon.py"},
}


def tree() -> dict[str, bytes]:
    """All files that are written by people, by their names, with their contents."""
    found = {}
    for folder, folders, names in os.walk(TREE):
        folders[:] = [name for name in folders if not MADE.fullmatch(name)]
        places = [Path(folder, name) for name in names]
        found.update({str(place.relative_to(TREE)): place.read_bytes() for place in places if place.is_file()})
    return found


def test_every_file_is_searched() -> None:
    assert {"Makefile", ".ci/run", "findings/lib", "tests/lab/fetch", "debian/rules", "pyproject.toml"} < set(tree())


def test_no_archive_of_this_machine_is_named_in_the_tree() -> None:
    uri = subprocess.run([TREE / "tests/lab/archive"], capture_output=True, text=True, check=True).stdout.strip()
    place = uri.split("://")[-1].encode()
    assert [name for name, content in tree().items() if place in content] == []


def test_no_host_that_exists_is_named_in_the_tree_but_where_a_document_needs_it() -> None:
    named = {(name, host) for name, content in tree().items() for host in URI_HOST.findall(content)}
    strangers = {(name, host) for name, host in named if not OURS.fullmatch(host)}
    assert {(name, host) for name, host in strangers if name not in DOCUMENTS.get(host, ())} == set()
