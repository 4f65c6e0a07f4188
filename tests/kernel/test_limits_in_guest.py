# SPDX-License-Identifier: GPL-2.0-or-later
"""The server's limits hold, and limits that the kernel cannot honour are refused before anything is attached."""

from __future__ import annotations

from pathlib import Path

import pytest
from servers import nbd_server, nbdkit
from tool import attached, connect, nbd, nbd_ok, partitioned_image, shell, sparse_file

import nbdattach
from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel

pytestmark = pytest.mark.any_monitor

FIRST = Kernel(Device(0))


def policy(minimum: int, maximum: int, *plugin: str) -> list[str]:
    return [
        "--filter=log",
        "--filter=blocksize-policy",
        *plugin,
        f"blocksize-minimum={minimum}",
        f"blocksize-preferred={max(minimum, 4096)}",
        f"blocksize-maximum={maximum}",
        "blocksize-error-policy=error",
    ]


def requests_of(log: Path) -> list[tuple[int, int]]:
    """Offset and length of each read and write in nbdkit's log."""
    found = []
    for line in log.read_text().splitlines():
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if " Read " in line or " Write " in line:
            found.append((int(words["offset"], 16), int(words["count"], 16)))
    return found


@pytest.mark.essential
def test_no_request_outside_the_servers_limits(tmp_path: Path) -> None:
    log, image = tmp_path / "log", partitioned_image(tmp_path / "image", 64)
    with nbdkit(*policy(4096, 65536, "file", f"file={image}", f"logfile={log}")) as server:
        with attached(server.uri):
            assert FIRST.block_size == 4096
            shell("mkfs.ext4 -q -F /dev/nbd0 && mount /dev/nbd0 /mnt && dd if=/dev/urandom of=/mnt/f bs=1M count=16")
            shell(
                "umount /mnt && dd if=/dev/nbd0 of=/dev/null bs=4M iflag=direct && dd if=/dev/nbd0 of=/dev/null bs=1M"
            )
        assert "error" not in server.log
    seen = requests_of(log)
    assert len(seen) > 100
    assert not [one for one in seen if one[0] % 4096 or one[1] % 4096 or one[1] > 65536]
    assert max(length for _, length in seen) == 65536


def test_limits_of_one_server_do_not_outlive_it(tmp_path: Path) -> None:
    with nbdkit(*policy(4096, 65536, "memory", "1M", f"logfile={tmp_path}/log")) as server, attached(server.uri):
        pass
    with nbdkit("memory", "1M") as server, attached(server.uri):
        assert FIRST.block_size == 512
        assert Path("/sys/block/nbd0/queue/max_sectors_kb").read_text().strip() == "1024"


def test_minimum_above_what_the_kernel_takes_is_refused_and_nothing_attached(tmp_path: Path) -> None:
    with nbdkit(*policy(65536, 1 << 20, "memory", "1M", f"logfile={tmp_path}/log")) as server:
        done = nbd("connect", server.uri, "/dev/nbd0")
        assert done.code == 6
        assert done.err.splitlines() == [
            f"nbdattach: {server.uri}: the server's minimum block size is 65536, but the kernel accepts at most 4096",
            "(use a server with a smaller minimum)",
        ]
    assert not FIRST.attached


def test_a_tail_below_one_block_is_ignored_and_said(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "image", 10_000)
    with nbdkit("file", f"file={image}") as server:
        done = nbd("connect", server.uri, "/dev/nbd0")
        assert done.code == 0
        assert "the last 272 bytes are less than a block and cannot be reached" in done.err
        assert FIRST.size == 9728
        nbd_ok("disconnect", "nbd0")


def test_block_size_option() -> None:
    with nbdkit("memory", "1M") as server:
        with attached(server.uri, block_size=4096):
            assert FIRST.block_size == 4096
        assert nbd("connect", "-b", "4095", server.uri).code == 2
        assert nbd("connect", "-b", "8192", server.uri).code == 2


@pytest.mark.parametrize("size", [0, 511, 2**63])
def test_sizes_that_cannot_be_attached(size: int) -> None:
    with nbdkit("eval", f"get_size=echo {size}", "pread=head -c $3 /dev/zero") as server:
        assert nbd("connect", server.uri, "/dev/nbd0").code in (4, 6)
    assert not FIRST.attached


NO_FLUSH = (
    "the server offers no flush: data that was synced may be lost if the server's machine crashes "
    "(nbd-server offers it with flush = true)"
)


@pytest.mark.parametrize(
    ("plugin", "flushes"),
    [
        (["memory", "1M"], True),
        (["eval", "get_size=echo 1M", "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null"], False),
    ],
)
def test_fsync_is_passed_on_if_the_server_offers_flush_and_else_it_is_said(
    tmp_path: Path, plugin: list[str], flushes: bool
) -> None:
    log = tmp_path / "log"
    with nbdkit("--filter=log", *plugin, f"logfile={log}") as server:
        done = nbd("connect", server.uri, "/dev/nbd0")
        assert (done.code, done.err) == (0, "" if flushes else f"nbdattach: {server.uri}: {NO_FLUSH}\n")
        shell("dd if=/dev/zero of=/dev/nbd0 bs=4096 count=1 conv=fsync status=none")
        assert " Write " in log.read_text()
        assert (" Flush " in log.read_text()) == flushes
        nbd_ok("disconnect", "nbd0")


@pytest.mark.parametrize(
    ("extra", "option", "said"), [("", None, True), ("flush = true", None, False), ("", "--read-only", False)]
)
def test_lack_of_flush_of_nbd_server_is_said(tmp_path: Path, extra: str, option: str | None, said: bool) -> None:
    with nbd_server({"disk": str(sparse_file(tmp_path / "image", 1 << 20))}, extra) as server:
        uri = server.export("disk")
        done = nbd("connect", *([option] if option else []), uri, "/dev/nbd0")
        assert (done.code, done.err) == (0, f"nbdattach: {uri}: {NO_FLUSH}\n" if said else "")
        nbd_ok("disconnect", "nbd0")


def test_expect_size() -> None:
    with nbdkit("memory", "1M") as server:
        done = nbd("connect", "--expect-size", "1048575", server.uri, "/dev/nbd0")
        assert done.code == 4
        assert "the export has 1048576 bytes, --expect-size says 1048575" in done.err
        with attached(server.uri, expect_size=1 << 20):
            pass


def test_several_connections_must_show_the_same_export(tmp_path: Path) -> None:
    """A server that gives each client a larger export than the one before."""
    count = tmp_path / "count"
    script = f"n=$(cat {count} 2>/dev/null || echo 0); echo $((n + 1)) > {count}; echo $(((n + 1) * 1048576))"
    answers = [f"get_size={script}", "pread=head -c $3 /dev/zero", "can_multi_conn=exit 0"]
    differ = pytest.raises(nbdattach.BrokenProtocol, match="different exports under the same name")
    with nbdkit("eval", *answers) as server, differ:
        connect(server.uri, "/dev/nbd0", connections=3)
    assert not FIRST.attached
