# SPDX-License-Identifier: GPL-2.0-or-later
"""If no device is free, users read how to get more: modprobe's nbds_max does nothing while the driver is loaded."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from host import NBD0, NBD1, pretend

from nbdattach.device import Device
from nbdattach.kernel.node import cannot_open
from nbdattach.operations import candidates
from nbdattach.protocol.export import Export


@pytest.mark.parametrize(
    ("makes_devices", "hint"),
    [
        (True, "nbdattach status shows them"),
        (False, "nbdattach status shows them; --backend netlink makes more devices by itself"),
    ],
)
def test_netlink_makes_more_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, makes_devices: bool, hint: str
) -> None:
    host = pretend(tmp_path, monkeypatch)
    host.attach(NBD0)
    host.attach(NBD1)
    monkeypatch.setattr(os.path, "exists", lambda _: True)
    error = candidates.none_free(None, makes_devices)
    assert (str(error), error.hint) == ("nbd: all 2 devices are in use", hint)


def test_netlink_makes_a_device_that_is_missing() -> None:
    error = cannot_open(NBD0, OSError(errno.ENXIO, "No such device or address"))
    assert str(error) == "/dev/nbd0: the kernel has no such device"
    assert error.hint == "--backend netlink makes it; without DEVICE, a free one is used"


EXPORT = Export("disk", 1 << 20, 1, "newstyle-fixed", "", None)


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The nodes in /dev; the kernel has nbd0, which is attached, and nbd1 to nbd3."""
    host = pretend(tmp_path, monkeypatch)
    host.attach(NBD0)
    for number in (1, 2, 3):
        (host.sys / f"block/nbd{number}").mkdir()
    found: set[str] = set()
    monkeypatch.setattr(os.path, "exists", found.__contains__)
    return found


def test_a_free_device_without_a_node_is_passed_over(nodes: set[str]) -> None:
    """A container has the nodes that it was given."""
    nodes |= {"/dev/nbd0", "/dev/nbd2"}
    assert list(candidates.to_try(None, EXPORT, makes_devices=False)) == [Device(2)]


@pytest.mark.usefixtures("nodes")
def test_no_node_at_all_is_said() -> None:
    error = candidates.none_free(None, makes_devices=False)
    assert str(error) == "nbd: /dev has no node of the 4 devices of the kernel"
    assert error.hint == "in a container, pass devices in; elsewhere udevadm trigger makes the nodes"


def test_a_missing_node_is_told_from_a_missing_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = pretend(tmp_path, monkeypatch)
    host.attach(NBD0)
    for device, cause in (
        (NBD0, "the kernel has the device, but /dev has no node for it"),
        (NBD1, "the kernel has no such device"),
    ):
        error = cannot_open(device, OSError(errno.ENOENT, "No such file or directory"))
        assert (error.cause, error.exit_code) == (cause, 6)
