# SPDX-License-Identifier: GPL-2.0-or-later
"""The wheel and the source distribution: complete, the same from both places, and good for an installation."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from nbdattach import __version__

ROOT = Path(__file__).resolve().parents[2]
LICENSE = (ROOT / "LICENSE").read_bytes()
# The place of each kind of file, below the prefix.
PLACES = {
    "man/*.5": "share/man/man5",
    "man/*.7": "share/man/man7",
    "man/*.8": "share/man/man8",
    "completions/bash/*": "share/bash-completion/completions",
    "completions/zsh/*": "share/zsh/site-functions",
    "completions/fish/*": "share/fish/vendor_completions.d",
    "initramfs/initramfs-tools/hooks/*": "share/initramfs-tools/hooks",
    "initramfs/initramfs-tools/scripts/local-top/*": "share/initramfs-tools/scripts/local-top",
    "initramfs/dracut/90nbdattach/*": "lib/dracut/modules.d/90nbdattach",
    "systemd/*.service": "lib/systemd/system",
    "systemd/*.target": "lib/systemd/system",
    "systemd/*-generator": "lib/systemd/system-generators",
    "systemd/*.rules": "lib/udev/rules.d",
    "systemd/nbdattach-tag": "lib/udev",
}


def tracked(*patterns: str) -> set[str]:
    """Files of the tree that are under version control, or could be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in said.splitlines() if (ROOT / name).exists()}


def build(kind: str, tree: Path, into: Path) -> Path:
    """As a packager without a network does it; beside it, because setuptools also packs leftovers of an older build."""
    beside = into / "setuptools"
    beside.mkdir()
    (beside / "config").write_text(f"[build]\nbuild_base = {beside}\n")
    environment = {"PATH": "/usr/bin:/bin", "DIST_EXTRA_CONFIG": str(beside / "config")}
    command = ["/usr/bin/python3", "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(into), "."]
    subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True, env=environment)
    (made,) = into.glob("nbdattach-*")
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"nbdattach-{__version__}"


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution."""
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


def content(wheel: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and bytes of each file."""
    with zipfile.ZipFile(wheel) as archive:
        return {one.filename: (one.external_attr >> 16 & 0o777, archive.read(one)) for one in archive.infolist()}


def data(wheel: Path) -> dict[str, int]:
    """Modes of the files below the prefix, by name."""
    prefix = f"nbdattach-{__version__}.data/data/"
    return {name.removeprefix(prefix): mode for name, (mode, _) in content(wheel).items() if name.startswith(prefix)}


def test_source_distribution_has_everything(unpacked: Path) -> None:
    missing = {name for name in tracked() if not (unpacked / name).exists()}
    assert missing == set()
    extra = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()} - tracked()
    assert {name for name in extra if not name.startswith("nbdattach.egg-info/")} == {"PKG-INFO"}


def test_licence_and_its_text_are_in_the_source_distribution(unpacked: Path) -> None:
    assert (unpacked / "LICENSE").read_bytes() == LICENSE
    assert "\nLicense: GPL-2.0-or-later\n" in (unpacked / "PKG-INFO").read_text()


def test_licence_and_its_text_are_in_the_wheel(wheel: Path) -> None:
    """The place of the text differs: setuptools puts it in `licenses` since 77."""
    files = {name: read for name, (_, read) in content(wheel).items() if ".dist-info/" in name}
    assert [read for name, read in files.items() if name.endswith("/LICENSE")] == [LICENSE]
    (metadata,) = (read for name, read in files.items() if name.endswith("/METADATA"))
    assert b"\nLicense: GPL-2.0-or-later\n" in metadata


def test_wheel_of_the_source_distribution_is_that_of_the_tree(wheel: Path, tmp_path: Path) -> None:
    assert content(build("wheel", ROOT, tmp_path)) == content(wheel)


def test_wheel_has_what_belongs_below_a_prefix(wheel: Path) -> None:
    wanted = {f"{place}/{Path(name).name}" for pattern, place in PLACES.items() for name in tracked(pattern)}
    assert set(data(wheel)) == wanted
    everything = tracked("man", "completions", "systemd", "initramfs")
    assert {Path(name).name for name in everything} == {Path(name).name for name in wanted}


def test_what_is_run_may_be_run(wheel: Path) -> None:
    runnable = {name for name, mode in data(wheel).items() if mode & 0o111}
    of_initramfs = {name for name in data(wheel) if "/initramfs-tools/" in name or "/dracut/" in name}
    assert runnable == {f"lib/{where}" for where in programs(wheel)} | of_initramfs


def programs(wheel: Path) -> set[str]:
    return {name.removeprefix("lib/") for name in data(wheel) if re.search(r"-generator$|/nbdattach-tag$", name)}


def test_wheel_installs_into_a_venv(wheel: Path, tmp_path: Path) -> None:
    """Without the network, so without its dependencies, which come from this one."""
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    pip = [str(home / "bin/python"), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True)
    (theirs,) = (home / "lib").glob("python3.*/site-packages")
    import click

    (theirs / "click.pth").write_text(str(Path(click.__file__).parents[1]))
    said = subprocess.run([home / "bin/nbdattach", "--version"], capture_output=True, text=True, check=True, cwd="/")
    assert said.stdout == f"nbdattach {__version__}\n"
    assert (home / "share/man/man8/nbdattach.8").is_file()


def test_changelog_of_the_package_is_of_this_version() -> None:
    assert (ROOT / "debian/changelog").read_text().startswith(f"nbdattach ({__version__}) ")


def test_newest_changes_are_of_this_version() -> None:
    versions = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == __version__


def test_version_is_in_one_place() -> None:
    """But for the changelogs, which Debian's tools and people read."""
    pattern = rf"(^|[^0-9.]){re.escape(__version__)}($|[^0-9.])"
    found = subprocess.run(["git", "grep", "-lE", pattern], cwd=ROOT, capture_output=True, text=True).stdout
    assert set(found.split()) == {"nbdattach/__init__.py", "debian/changelog", "CHANGELOG.md"}
