"""With the real udevd: it is neither in the way of connect and disconnect, nor are they in its."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from servers import nbdkit
from tool import attached, nbd_ok, partitioned_image, shell

from nbdattach import udev
from nbdattach.device import Device
from nbdattach.sysfs import Kernel

pytestmark = pytest.mark.udev
FIRST = Kernel(Device(0))


def test_udevd_really_runs() -> None:
    assert udev.running()
    assert "systemd-udevd" in shell("ps ax")


def test_partitions_and_their_links_are_there_when_connect_returns(tmp_path: Path) -> None:
    image = partitioned_image(tmp_path / "image")
    uuids = [
        line.strip().lower() for line in shell(f"sfdisk --part-uuid {image} 1; sfdisk --part-uuid {image} 2").split()
    ]
    with nbdkit("file", f"file={image}") as server:
        for _ in range(5):
            nbd_ok("connect", server.uri, "nbd0")
            links = [os.path.realpath(f"/dev/disk/by-partuuid/{uuid}") for uuid in uuids]
            assert links == ["/dev/nbd0p1", "/dev/nbd0p2"]
            assert FIRST.partitions == ["nbd0p1", "nbd0p2"]
            nbd_ok("disconnect", "nbd0")
            assert not Path("/dev/nbd0p1").exists()


@pytest.mark.timeout(250)
def test_60_rounds_without_a_false_in_use(tmp_path: Path) -> None:
    image = partitioned_image(tmp_path / "image")
    with nbdkit("file", f"file={image}") as server:
        for _ in range(60):
            with attached(server.uri, None):
                assert FIRST.partitions == ["nbd0p1", "nbd0p2"]
