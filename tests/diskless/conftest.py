"""The image that the machines boot from, made once, and a machine with its server for each test."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Authority
from machine import Machine, Server

HERE = Path(__file__).resolve().parent
RELEASE = os.environ.get("LAB_RELEASE") or "bookworm"  # as `image` has it


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root.img, vmlinuz, and each initramfs; in tls what the server shows, whose authority the image knows."""
    out = tmp_path_factory.mktemp("boot")
    Authority(out / "authority").issue(out / "tls", "server", "disks", "DNS:disks")
    subprocess.run([HERE / "image", out], check=True)
    return out


@pytest.fixture
def image(files: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "--sparse=always", files / "root.img", tmp_path / "root.img"], check=True)
    return tmp_path / "root.img"


class Lab:
    """Servers and machines of one test, which go when it ends."""

    def __init__(self, files: Path, image: Path) -> None:
        self._files = files
        self.image = image
        self.server = Server(image)
        self._machines: list[Machine] = []

    def over_tls(self) -> Server:
        self.server = Server(self.image, tls=self._files / "tls")
        return self.server

    def boot(self, words: str, initramfs: str = "initrd") -> Machine:
        self._machines.append(Machine(self.image.parent, self._files, words, initramfs))
        return self._machines[-1]

    def end(self) -> None:
        for machine in self._machines:
            machine.end()
        self.server.kill()


@pytest.fixture
def lab(files: Path, image: Path) -> Iterator[Lab]:
    made = Lab(files, image)
    try:
        yield made
    finally:
        made.end()
        shutil.copy(image.parent / "console.log", HERE.parents[1] / "build")
        image.unlink()
