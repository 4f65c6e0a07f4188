# SPDX-License-Identifier: GPL-2.0-or-later
"""Many rounds while others look at the device all the time: udev, and a program that opens and closes the node.

No false "in use", nothing wedged, nothing left. ROUNDS sets how many; `make rounds` makes 500. (A program that opens it
for writing makes udev drop and read the partitions at each close; that is not tried here.)
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import nbdkit
from tool import ALL, attached, partitioned_image

from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel

pytestmark = pytest.mark.udev
ROUNDS = int(os.environ.get("ROUNDS") or (25 if ALL else 8))
FIRST = Kernel(Device(0))
LOOKER = """
import os, sys
while True:
    try:
        os.close(os.open(sys.argv[1], os.O_RDONLY))
    except OSError:
        pass
"""


@pytest.fixture
def somebody_looks() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-S", "-c", LOOKER, "/dev/nbd0"]) as looker:
        yield
        assert looker.poll() is None
        looker.kill()


@pytest.mark.usefixtures("somebody_looks")
@pytest.mark.timeout(60 + 4 * ROUNDS)
@pytest.mark.parametrize("backend", ["ioctl", "netlink"])
def test_rounds_under_the_eyes_of_others(tmp_path: Path, backend: str) -> None:
    image = partitioned_image(tmp_path / "image", 16)
    with nbdkit("file", f"file={image}") as server:
        for number in range(ROUNDS):
            with attached(server.uri, "nbd0", backend=backend, reconnect=False):
                assert FIRST.size == 16 << 20
                assert Path("/dev/nbd0p2").is_block_device()
                if number % 10 == 0:
                    with open("/dev/nbd0p1", "r+b") as node:
                        node.write(os.urandom(8192))
            assert not (FIRST.attached or FIRST.size or FIRST.partitions)
