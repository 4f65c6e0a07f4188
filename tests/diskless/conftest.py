# SPDX-License-Identifier: GPL-2.0-or-later
"""The image that the machines boot from, made once, and a machine with its server for each test."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from certificates import Authority
from machine import HOST, TAP, Machine, Server
from tap import make_network

HERE = Path(__file__).resolve().parent
RELEASE = os.environ.get("LAB_RELEASE") or "bookworm"  # as `image` has it


def pytest_configure(config: pytest.Config) -> None:
    try:
        make_network(TAP, HOST, "root")
    except RuntimeError as error:
        pytest.exit(str(error), returncode=4)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """For a kernel: root.img, each initramfs, and the certificate of the server (tls)."""

    @cache
    def make(kernel: str) -> Path:
        out = tmp_path_factory.mktemp(kernel)
        Authority(out / "authority").issue(out / "tls", "server", "disks", "DNS:disks")
        subprocess.run([HERE / "image", kernel, out], check=True)
        return out

    return make


class Lab:
    """Servers and machines of one test, which go when it ends."""

    def __init__(self, kernel: str, files: Path, image: Path) -> None:
        self._kernel, self._files = kernel, files
        self.image = image
        self.server = Server(image)
        self._machines: list[Machine] = []

    def over_tls(self) -> Server:
        self.server = Server(self.image, tls=self._files / "tls")
        return self.server

    def boot(self, words: str, initramfs: str = "initrd") -> Machine:
        self._machines.append(Machine(self._kernel, self.image.parent, self._files, words, initramfs))
        return self._machines[-1]

    def end(self) -> None:
        for machine in self._machines:
            machine.end()
        self.server.kill()


@pytest.fixture
def lab(kernel: str, files: Callable[[str], Path], tmp_path: Path) -> Iterator[Lab]:
    made_from, image = files(kernel), tmp_path / "root.img"
    subprocess.run(["cp", "--sparse=always", made_from / "root.img", image], check=True)
    made = Lab(kernel, made_from, image)
    try:
        yield made
    finally:
        made.end()
        shutil.copy(tmp_path / "console.log", HERE.parents[1] / "build")
        image.unlink()
