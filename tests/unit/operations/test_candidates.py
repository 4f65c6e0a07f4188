# SPDX-License-Identifier: GPL-2.0-or-later
"""If no device is free, users read how to get more: modprobe's nbds_max does nothing while the driver is loaded."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from host import NBD0, NBD1, pretend

from nbdattach.kernel.node import cannot_open
from nbdattach.operations import candidates


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
    error = candidates.none_free(None, makes_devices)
    assert (str(error), error.hint) == ("nbd: all 2 devices are in use", hint)


def test_netlink_makes_a_device_that_is_missing() -> None:
    error = cannot_open(NBD0, OSError(errno.ENXIO, "No such device or address"))
    assert str(error) == "/dev/nbd0: the kernel has no such device"
    assert error.hint == "--backend netlink makes it; without DEVICE, a free one is used"
