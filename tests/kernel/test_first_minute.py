# SPDX-License-Identifier: GPL-2.0-or-later
"""The first minute of README.md, word for word: from nothing to a disk that was used and is detached."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tool import eventually, shell

from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel

pytestmark = pytest.mark.any_monitor

README = Path(__file__).parents[2] / "README.md"


def first_minute() -> str:
    section = README.read_text().split("## The first minute\n")[1].split("\n## ")[0]
    return "".join(f"{line}\n" for line in re.findall(r"^ {4}(.*)", section, re.MULTILINE))


def path_with_both(folder: Path) -> str:
    """Root needs no sudo, so a machine may have none: here it runs the command. And nbdattach is this very one."""
    for name, does in (("sudo", 'exec "$@"'), ("nbdattach", f'exec {sys.executable} -m nbdattach "$@"')):
        program = folder / name
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.fixture
def no_server_left() -> Iterator[None]:
    """Otherwise a failure here would fail each test that needs that port."""
    yield
    shell("pkill -x nbdkit || true")


@pytest.mark.netlink
@pytest.mark.usefixtures("no_server_left")
def test_first_minute_of_the_readme_works_as_it_is_printed(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    environment = {**os.environ, "PATH": path_with_both(tmp_path / "bin")}
    command = ["sh", "-eu", "-c", first_minute()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    device, head, line = done.stdout.splitlines()
    assert (device, head.split()[0]) == ("/dev/nbd0", "DEVICE")
    assert line.split() == ["/dev/nbd0", "connected", "1", "GiB", "no", "no", "nbd://localhost", "/mnt"]
    assert not Kernel(Device(0)).attached
    shell(f"e2fsck -fn {tmp_path}/disk.img")
    eventually(lambda: not shell("ss -Hltn sport = :10809"))
