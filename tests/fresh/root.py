# SPDX-License-Identifier: GPL-2.0-or-later
"""A root of a Debian release as after its installation, used in a chroot with /proc, /sys and /dev.

Its base is minbase with git, make, ca-certificates and sudo, made once and kept in build/roots. It reaches the archive
and the Python package index as this machine does. Root only.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

import archive

TREE = Path(__file__).resolve().parents[2]
KEPT = TREE / "build/roots"
PACKAGES = "ca-certificates,git,make,sudo"
# How pip finds the index and trusts it; sudo lets them pass.
OF_PIP = ("PIP_*", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "*_proxy", "*_PROXY")
PIP_FILES = ("/etc/pip.conf", "/etc/xdg/pip")
SUDOERS = f"""\
user ALL=(ALL) NOPASSWD: ALL
Defaults env_keep += "{" ".join(OF_PIP)}"
"""
# The mounts, and every process that a command leaves behind, are gone when it ends.
ENTER = """
mount -t proc proc "$1/proc"
mount -t sysfs -o ro sysfs "$1/sys"
mount --rbind /dev "$1/dev"
root=$1 user=$2
shift 2
exec chroot --userspec="$user" --groups= "$root" env -i "$@"
"""


@dataclass(frozen=True)
class Root:
    release: str
    place: Path

    def run(self, script: str, user: str = "user", folder: str = "/", code: int = 0) -> str:
        """As typed into a shell without further input: apt's questions get a yes. Returns both outputs."""
        home = "/root" if user == "root" else f"/home/{user}"
        environment = {"HOME": home, "LC_ALL": "C.UTF-8", "PATH": "/usr/local/bin:/usr/bin:/bin", **pip_environment()}
        if user == "root":
            environment["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        words = [f"{name}={value}" for name, value in environment.items()]
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        command = [*unshare, "sh", "-euc", ENTER, "sh", str(self.place), f"{user}:{user}", *words]
        command += ["bash", "-euc", f"cd {folder}\n{script}"]
        done = subprocess.run(command, input="y\n" * 9, stdout=-1, stderr=subprocess.STDOUT, text=True, timeout=800)
        assert done.returncode == code, f"{script}\n-> {done.returncode}\n{done.stdout}"
        return done.stdout

    def install(self, *packages: str) -> None:
        """For the test itself, in addition to README's commands."""
        self.run(f"apt-get -qq update && apt-get -qq -y --no-install-recommends install {' '.join(packages)}", "root")

    def checkout(self) -> None:
        """The commit that is tested, and uncommitted changes, as ~user/nbdattach."""
        place = self.place / "home/user/nbdattach"
        subprocess.run(["git", "clone", "--quiet", TREE, place], check=True)
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=TREE, check=True, capture_output=True).stdout
        copy = f"xargs -0 cp --parents --no-dereference --target-directory={place}"
        subprocess.run(["sh", "-c", copy], cwd=TREE, input=existing(names), check=True)
        subprocess.run(["chown", "-R", "1000:1000", place], check=True)

    def remove(self) -> None:
        shutil.rmtree(self.place)


def existing(names: bytes) -> bytes:
    return b"".join(name + b"\0" for name in names.split(b"\0") if name and (TREE / os.fsdecode(name)).exists())


def pip_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if any(Path(name).match(one) for one in OF_PIP)}


def fresh(release: str, place: Path) -> Root:
    """With a checkout, and a user with permission to use sudo."""
    place.mkdir()
    subprocess.run(["tar", "--extract", "--directory", place, "--file", base(release)], check=True)
    root = Root(release, place)
    shutil.copy("/etc/resolv.conf", place / "etc/resolv.conf")
    (place / "etc/hosts").write_text(f"127.0.0.1 localhost {platform.node()}\n")
    (place / "etc/dpkg/dpkg.cfg.d/fresh").write_text("force-unsafe-io\n")  # minutes less on a busy disk
    (place / "etc/sudoers.d/user").write_text(SUDOERS)
    as_the_machine(place)
    root.run("useradd --create-home --shell /bin/bash user", "root")
    root.checkout()
    return root


def as_the_machine(place: Path) -> None:
    """The way to the package index."""
    for name in PIP_FILES:
        if Path(name).is_dir():
            shutil.copytree(name, f"{place}{name}", dirs_exist_ok=True)
        elif Path(name).exists():
            shutil.copy(name, f"{place}{name}")
    for value in pip_environment().values():
        if value.startswith("/") and Path(value).is_file():
            Path(f"{place}{value}").parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(value, f"{place}{value}")


def base(release: str) -> Path:
    """Its tar, made if there is none of these packages."""
    tar = KEPT / f"{release}-{zlib.crc32(PACKAGES.encode()):08x}.tar"
    if not tar.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        make_base(release, tar)
    return tar


def make_base(release: str, tar: Path) -> None:
    files = archive.sources(release)
    assert files, "no source of Debian's packages in /etc/apt"
    for name, content in files.items():
        (KEPT / name).write_text(content)
    settings = KEPT / "apt.conf"
    settings.write_text(archive.settings())
    new = tar.with_suffix(".new.tar")
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={PACKAGES}"]
    command += [f"--aptopt={settings}", release, str(new), *(str(KEPT / name) for name in files)]
    subprocess.run(command, check=True, timeout=600)
    new.rename(tar)
