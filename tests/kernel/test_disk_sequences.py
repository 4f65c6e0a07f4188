# SPDX-License-Identifier: GPL-2.0-or-later
"""Random sequences of what users do to a disk, with restarts of the server between: the right disk is never refused."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from disks import KINDS
from test_restart import Place, place, state_of, trouble_of
from tool import ALL, attached, nbd_ok, shell

pytestmark = [pytest.mark.netlink, pytest.mark.any_monitor]
_USE_EXT4 = "mkfs.ext4 -q -F /dev/nbd0 && mount /dev/nbd0 /mnt && cp -r /etc/init.d /mnt && umount /mnt"
STEPS = {
    **{name: kind.make for name, kind in KINDS.items() if name not in ("xfs", "btrfs", "lvm", "md")},
    "files": _USE_EXT4,
    "online": "mkfs.ext4 -q -F /dev/nbd0 32M; mount /dev/nbd0 /mnt; resize2fs /dev/nbd0 >/dev/null 2>&1; umount /mnt",
    "fsck": "mkfs.ext4 -q -F /dev/nbd0 && e2fsck -f -y /dev/nbd0 >/dev/null",
    "discard": "blkdiscard -f /dev/nbd0",
    "zeroes": "dd if=/dev/zero of=/dev/nbd0 bs=1M count=4 conv=fsync 2>/dev/null",
    "wipe": "wipefs -q -a /dev/nbd0",
    "delete a partition": f"{KINDS['gpt'].make}; sfdisk -q --delete /dev/nbd0 1",
    "grow": "",
    "wait": "sleep 2",
}


@pytest.mark.timeout(7200)
def test_the_right_disk_is_never_refused() -> None:
    """Each step with, or without, a restart of the server right after it."""
    # Here, because its import takes half a second in each guest.
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    @settings(
        max_examples=200 if ALL else 6,
        derandomize=not ALL,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.booleans()), min_size=2, max_size=6))
    def is_never_refused(sequence: list[tuple[str, bool]]) -> None:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
            one = place(Path(folder), "image", mebibytes=64)
            server = servers.enter_context(one.serve())
            with attached(server.uri, "nbd0"):
                for step, restarts in sequence:
                    _do(step, one)
                    if restarts:
                        server.kill()
                        server = servers.enter_context(one.serve())
                        _require_connected(sequence)

    is_never_refused()


def _do(step: str, one: Place) -> None:
    if step == "grow":
        os.truncate(one.image, os.path.getsize(one.image) + (8 << 20))
        nbd_ok("resize", "nbd0")
    else:
        shell(STEPS[step])


def _require_connected(sequence: list[tuple[str, bool]]) -> None:
    end = time.monotonic() + 60
    while state_of("nbd0") != "connected":
        assert time.monotonic() < end, f"{sequence}: {trouble_of('nbd0')}"
        time.sleep(0.05)
