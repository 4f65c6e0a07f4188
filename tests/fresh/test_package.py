# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian package is the same, whichever release builds it, and each release can install it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from root import Root

RELEASES = ["bookworm", "trixie", "sid"]
CHECKOUT = "/home/user/nbdattach"
# dh_python3 writes these, and setuptools its own.
GENERATED = re.compile(r"# Automatically added by dh_python3\n.*?# End automatically added section\n", re.DOTALL)
OF_SETUPTOOLS = ".dist-info/"
# A package as it was up to 2026: the same files, in /lib. Everything else as now.
OLD = """
dpkg-deb --raw-extract /new.deb /old
mkdir /old/lib
mv /old/usr/lib/systemd /old/usr/lib/udev /old/lib/
sed -i 's/^Version: .*/Version: 0.0.1/' /old/DEBIAN/control
sed -i 's,  usr/lib/\\(systemd\\|udev\\),  lib/\\1,' /old/DEBIAN/md5sums
dpkg-deb --build /old /old.deb
"""
UPGRADE = """
apt-get -qq -y install systemd /old.deb
systemctl enable nbdattach-monitor nbdattach@nbd3
dpkg --install /new.deb
"""
ENABLED = "cd /etc/systemd/system; ls */nbdattach*"
GONE = 'dpkg --listfiles nbdattach | while read -r file; do [ -e "$file" ] || echo "$file"; done'


@dataclass
class Built:
    """The package that a release makes of the tree, and the root where it was made, by root."""

    root: Root
    deb: Path

    def files(self) -> list[str]:
        listed = self.root.run("dpkg-deb --contents /new.deb", "root").splitlines()
        names = [f"{line.split()[0]} {line.split()[5]}" for line in listed]
        return sorted(name for name in names if OF_SETUPTOOLS not in name)

    def script(self, name: str) -> str:
        return GENERATED.sub("", self.root.run(f"dpkg-deb --info /new.deb {name}", "root"))


@pytest.fixture(scope="module")
def builds(make_root: Callable[[str], Root]) -> Callable[[str], Built]:
    made: dict[str, Built] = {}

    def of(release: str) -> Built:
        if release not in made:
            made[release] = build(make_root(release))
        return made[release]

    return of


def build(root: Root) -> Built:
    root.run("SUDO_FORCE_REMOVE=yes dpkg --purge sudo", "root")
    root.run("git config --global safe.directory '*'; make deb", "root", CHECKOUT)
    (deb,) = root.place.glob("home/user/nbdattach/dist/*.deb")
    shutil.copy(deb, root.place / "new.deb")
    root.install("lintian")
    return Built(root, deb)


@pytest.mark.parametrize("builder", RELEASES)
@pytest.mark.parametrize("judge", RELEASES)
def test_lintian_is_silent(builds: Callable[[str], Built], builder: str, judge: str) -> None:
    root = builds(judge).root
    name = f"from-{builder}.deb"
    shutil.copy(builds(builder).deb, root.place / name)
    assert root.run(f"lintian --allow-root --fail-on error,warning /{name}", "root") == ""


@pytest.mark.parametrize("release", RELEASES[1:])
def test_each_release_builds_the_same(builds: Callable[[str], Built], release: str) -> None:
    first, other = builds(RELEASES[0]), builds(release)
    assert other.files() == first.files()
    for name in ("postinst", "prerm", "postrm"):
        assert other.script(name) == first.script(name)


@pytest.mark.parametrize("release", RELEASES)
def test_no_compiler_of_cxx_is_installed_for_it(builds: Callable[[str], Built], release: str) -> None:
    assert builds(release).root.run("! command -v g++", "root") == ""


@pytest.mark.parametrize("release", RELEASES)
def test_an_upgrade_from_files_in_lib_loses_none(builds: Callable[[str], Built], release: str) -> None:
    root = builds(release).root
    root.run(OLD + UPGRADE, "root")
    assert root.run(GONE, "root") == ""
    assert root.run("dpkg --verify nbdattach", "root") == ""
    enabled = [f"multi-user.target.wants/{name}.service" for name in ("nbdattach-monitor", "nbdattach@nbd3")]
    assert root.run(ENABLED, "root").split() == enabled
    root.run("dpkg --purge nbdattach", "root")
    root.run(ENABLED, "root", code=2)
