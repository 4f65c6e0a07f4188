# SPDX-License-Identifier: GPL-2.0-or-later
"""No setting for an earlier attachment, by hand or by a tool, affects the data of this one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from servers import nbdkit
from tool import (
    BACKEND,
    BY_IOCTL,
    attached,
    connect,
    digest_of,
    fill_with_noise,
    nbd_ok,
    partitioned_image,
    shell,
    sparse_file,
)

from nbdattach.attached import state, status
from nbdattach.backends import by_ioctl, by_netlink
from nbdattach.device import Device
from nbdattach.kernel import settings
from nbdattach.kernel.sysfs import Kernel

pytestmark = pytest.mark.any_monitor

FIRST = Kernel(Device(0))
QUEUE = Path("/sys/block/nbd0/queue")


def logged(log: Path, request: str) -> int:
    """How many of these nbdkit has served."""
    return log.read_text().count(f" {request} ")


def write_and_sync() -> None:
    fd = os.open("/dev/nbd0", os.O_WRONLY)
    try:
        os.write(fd, b"written " * 512)
        os.fsync(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("attached_then", [pytest.param(True, marks=pytest.mark.essential), False])
def test_fsync_reaches_the_server_whatever_was_set_before(tmp_path: Path, attached_then: bool) -> None:
    log = tmp_path / "log"
    with nbdkit("--filter=log", "memory", "1M", f"logfile={log}") as server:
        with attached(server.uri):
            if attached_then:
                (QUEUE / "write_cache").write_text("write through")
        if not attached_then:
            (QUEUE / "write_cache").write_text("write through")
        with attached(server.uri):
            before = logged(log, "Flush")
            write_and_sync()
            assert logged(log, "Flush") > before


def test_a_server_that_cannot_flush_is_not_asked_to(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with nbdkit("memory", "1M") as server, attached(server.uri):
        pass
    plugin = ["eval", "get_size=echo 1M", "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null", "can_write=exit 0"]
    with nbdkit("--filter=log", *plugin, "can_flush=exit 3", f"logfile={log}") as server, attached(server.uri):
        write_and_sync()
        assert not FIRST.write_back
    assert not logged(log, "Flush")


def test_what_is_changed_while_it_is_attached_is_told_with_what_mends_it() -> None:
    with nbdkit("memory", "1M") as server, attached(server.uri):
        record = state.load(FIRST.device)
        assert record

        def told() -> list[str]:
            return settings.differences(FIRST.device, record.flags, record.max_sectors_kb, record.block_size)

        assert told() == []
        (QUEUE / "write_cache").write_text("write through")
        shell("blockdev --setro /dev/nbd0")
        (QUEUE / "max_sectors_kb").write_text(
            "4096" if int((QUEUE / "max_hw_sectors_kb").read_text()) > 4096 else "2048"
        )
        lines = told()
        assert [line.partition(": ")[2].partition(":")[0] for line in lines] == [
            "fsync does not reach the server",
            "the kernel refuses writes, although the server accepts them",
            "the kernel may send larger requests than the server accepts",
        ]
        for line in lines:
            shell(line.rpartition(": ")[2])
        assert told() == []
        fill_with_noise("/dev/nbd0", 1)


def test_what_the_monitor_counts_is_counted_again() -> None:
    with nbdkit("memory", "1M") as server:
        with attached(server.uri):
            (QUEUE / "iostats").write_text("0")
        with attached(server.uri):
            before = FIRST.completed
            shell("dd if=/dev/nbd0 of=/dev/null count=1 iflag=direct status=none")
            assert FIRST.completed > before


def test_a_write_is_flushed_though_nothing_is_counted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with nbdkit("--filter=log", "memory", "1M", f"logfile={log}") as server:
        connect(server.uri, "nbd0")
        (QUEUE / "iostats").write_text("0")
        fill_with_noise("/dev/nbd0", 1)
        nbd_ok("disconnect", "nbd0")
    requests = [line for line in log.read_text().splitlines() if " Write " in line or " Flush " in line]
    assert " Write " in "".join(requests) and " Flush " in requests[-1]


@pytest.mark.spoils
def test_partitions_of_an_earlier_server_are_gone_before_the_next_one_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through one of them a program would write to the new server, at a place with another meaning there."""
    module, step = (by_netlink, "_connect") if BACKEND == "netlink" else (by_ioctl.Worker, "start")
    serve, seen = getattr(module, step), []

    def look_and_serve(*arguments: object) -> object:
        seen.append(FIRST.partitions)
        return serve(*arguments)

    with nbdkit("file", f"file={partitioned_image(tmp_path / 'image')}") as server:
        shell(f"nbd-client 127.0.0.1 {server.place[1]} /dev/nbd0 && blockdev --rereadpt /dev/nbd0")
        shell("nbd-client -d /dev/nbd0")
    assert FIRST.partitions and not FIRST.attached
    monkeypatch.setattr(module, step, look_and_serve)
    with nbdkit("memory", "1M") as server, attached(server.uri):
        assert (seen, FIRST.partitions) == ([[]], [])


def test_a_mark_that_makes_it_read_only_ends_with_the_attachment() -> None:
    """Another program may have set it, or a disconnect that was killed."""
    with nbdkit("memory", "1M") as server, attached(server.uri):
        shell("blockdev --setro /dev/nbd0")
    assert not FIRST.read_only


@pytest.mark.essential
@pytest.mark.spoils
def test_a_time_out_of_an_earlier_attachment_fails_no_request_of_this_one() -> None:
    """nbd-client -t leaves queue/io_timeout behind: a request of a slow server would be older than that."""
    with nbdkit("memory", "1M") as server:
        shell(f"nbd-client -t 1 127.0.0.1 {server.place[1]} /dev/nbd0 {BY_IOCTL}")
        assert FIRST.io_timeout == 1
        shell("nbd-client -d /dev/nbd0 && while pgrep -x nbd-client; do sleep 0.1; done")
    assert FIRST.io_timeout == 1
    with nbdkit("--filter=delay", "memory", "1M", "wdelay=3") as slow, attached(slow.uri):
        assert FIRST.io_timeout > 1
        write_and_sync()
        assert FIRST.attached and status.status_of(FIRST.device).trouble is None


@pytest.mark.spoils
def test_partitions_of_an_earlier_server_give_way_to_those_of_the_next(tmp_path: Path) -> None:
    """A program that opens nbd0p1 first, before nbd0, must not write where the partition was on the earlier disk."""
    image = sparse_file(tmp_path / "next", 16 << 20)
    shell(f"printf 'label: gpt\\nstart=8MiB, size=2MiB\\n' | sfdisk -q {image}")
    with nbdkit("file", f"file={partitioned_image(tmp_path / 'image')}") as server:
        shell(f"nbd-client 127.0.0.1 {server.place[1]} /dev/nbd0 && blockdev --rereadpt /dev/nbd0")
        assert len(FIRST.partitions) == 2
        shell("nbd-client -d /dev/nbd0")
    with nbdkit("file", f"file={image}") as server, attached(server.uri):
        assert FIRST.partitions == ["nbd0p1"]
        shell("printf here | dd of=/dev/nbd0p1 conv=fsync status=none")
    assert image.read_bytes()[8 << 20 :].startswith(b"here")


def test_no_blockdev_makes_a_read_only_export_writable(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "image", 1 << 20)
    with nbdkit("--readonly", "file", f"file={image}") as server, attached(server.uri):
        shell("blockdev --setrw /dev/nbd0")
        with pytest.raises(OSError, match=r"not permitted|Input/output|Read-only"):
            write_and_sync()
        assert FIRST.attached
    assert not any(image.read_bytes())


@pytest.mark.essential
@pytest.mark.spoils
def test_a_mark_that_another_program_set_between_two_attachments_keeps_no_write_away(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "image", 1 << 20)
    with nbdkit("file", f"file={image}") as server:
        shell(f"nbd-client 127.0.0.1 {server.place[1]} /dev/nbd0 {BY_IOCTL} && blockdev --setro /dev/nbd0")
        shell("nbd-client -d /dev/nbd0 && while pgrep -x nbd-client; do sleep 0.1; done")
        assert FIRST.read_only
        with attached(server.uri):
            assert not FIRST.read_only
            written = fill_with_noise("/dev/nbd0", 1)
    assert digest_of(image) == written
