# SPDX-License-Identifier: GPL-2.0-or-later
"""A partition table that was made for another block size: what the kernel makes of it is said to be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from servers import nbdkit
from tool import nbd, nbd_ok, partitioned_image, shell

pytestmark = pytest.mark.any_monitor


@pytest.mark.parametrize(
    ("made_for", "attached_with", "label"),
    [
        (512, 4096, "gpt"),
        (4096, 512, "dos"),
        pytest.param(512, 4096, "dos", marks=pytest.mark.rare),
        pytest.param(4096, 512, "gpt", marks=pytest.mark.rare),
    ],
)
def test_a_table_for_another_block_size_is_said_to_be_wrong(
    tmp_path: Path, label: str, made_for: int, attached_with: int
) -> None:
    image = tmp_path / "image"
    shell(f"truncate -s 32M {image}")
    with nbdkit("file", f"file={image}") as server:
        nbd_ok("connect", "-b", str(made_for), server.uri, "nbd0")
        shell(f"printf 'label: {label}\\nsize=8MiB\\n' | sfdisk -q /dev/nbd0 && mkfs.ext4 -q /dev/nbd0p1")
        nbd_ok("disconnect", "nbd0")
        done = nbd("connect", "-b", str(attached_with), server.uri, "nbd0")
        says = f"its partition table is for blocks of {made_for} bytes, but the device has blocks of {attached_with}"
        advice = "its partitions are in wrong places, do not write to them"
        hint = f"--block-size {made_for} attaches it right"
        assert (done.code, done.err.splitlines()) == (0, [f"nbdattach: /dev/nbd0: {says}: {advice}; {hint}"])
        nbd_ok("disconnect", "nbd0")
        done = nbd("connect", "-b", str(made_for), server.uri, "nbd0")
        assert (done.code, done.err) == (0, "")
        nbd_ok("disconnect", "nbd0")


def test_where_the_server_takes_no_smaller_blocks_a_loop_device_has_them(tmp_path: Path) -> None:
    image = partitioned_image(tmp_path / "image")
    with nbdkit("--filter=blocksize-policy", "file", f"file={image}", "blocksize-minimum=4096") as server:
        done = nbd("connect", server.uri, "nbd0")
        command = done.err.partition("; ")[2].removesuffix(" makes a device with the right ones\n")
        assert command == "losetup -fP --sector-size 512 /dev/nbd0"
        shell("modprobe loop")
        shell(command)
        assert shell("lsblk -nro NAME /dev/loop0").split() == ["loop0", "loop0p1", "loop0p2"]
        shell("losetup -d /dev/loop0")
        nbd_ok("disconnect", "nbd0")


def test_partitions_without_a_node_are_named(tmp_path: Path) -> None:
    image = partitioned_image(tmp_path / "image")
    with nbdkit("file", f"file={image}") as server:
        run = "unshare -m sh -ec 'mount -t tmpfs none /dev && mknod /dev/nbd0 b 43 0 && mknod /dev/nbd1 b 43 32"
        run += " && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9"
        said = shell(f"{run} && python3 -m nbdattach connect {server.uri} 2>&1'")
        assert "/dev/nbd0p1, /dev/nbd0p2: the kernel has it, but /dev has no node for it" in said
        nbd_ok("disconnect", "nbd0")
