# SPDX-License-Identifier: GPL-2.0-or-later
"""`--scheduler` and `--read-ahead`: in effect when connect returns, and as long as the device is attached."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from servers import nbdkit
from test_restart import MIB, place
from tool import attached, eventually, nbd, nbd_ok

from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel

pytestmark = pytest.mark.any_monitor

FIRST = Kernel(Device(0))
QUEUE = Path("/sys/block/nbd0/queue")
OPTIONS = ("--scheduler", "none", "--read-ahead", "4194304")


def settings() -> tuple[str, int]:
    """The scheduler, and KiB read ahead."""
    return FIRST.scheduler, int((QUEUE / "read_ahead_kb").read_text())


@pytest.mark.essential
def test_both_are_set_when_connect_returns_and_taken_back_at_disconnect() -> None:
    before = settings()
    assert before[0] != "none"
    with nbdkit("memory", "1M") as server:
        nbd_ok("connect", *OPTIONS, server.uri, "nbd0")
        assert settings() == ("none", 4096)
        nbd_ok("disconnect", "nbd0")
        assert FIRST.scheduler == before[0]
        with attached(server.uri):
            assert settings() == before


def test_what_an_attachment_left_that_ended_in_another_way_is_taken_back_by_the_next() -> None:
    before = settings()
    with nbdkit("memory", "1M") as server:
        nbd_ok("connect", *OPTIONS, server.uri, "nbd0")
        saved = Path("/run/nbdattach/nbd0.queue").read_text()
        nbd_ok("disconnect", "nbd0")
        (QUEUE / "scheduler").write_text("none")  # as if it had been killed
        (QUEUE / "read_ahead_kb").write_text("4096")
        Path("/run/nbdattach/nbd0.queue").write_text(saved)
        with attached(server.uri):
            assert settings() == before


def test_a_setting_of_another_program_is_left_alone() -> None:
    before = settings()
    with nbdkit("memory", "1M") as server:
        with attached(server.uri, scheduler=before[0]):
            (QUEUE / "scheduler").write_text("none")
        with attached(server.uri):
            assert FIRST.scheduler == "none"
    (QUEUE / "scheduler").write_text(before[0])


def test_an_unknown_scheduler_is_refused_with_the_names_before_anything_is_attached() -> None:
    with nbdkit("memory", "1M") as server:
        done = nbd("connect", "--scheduler", "noop", server.uri, "nbd0")
        assert (done.code, done.out) == (6, "")
        assert done.err.splitlines()[0] == "nbdattach: /dev/nbd0: the kernel has no scheduler noop for it"
        assert all(name in done.err for name in ("none", "mq-deadline", *FIRST.schedulers))
        assert not FIRST.attached


def test_a_read_ahead_is_rounded_up_to_pages() -> None:
    with nbdkit("memory", "1M") as server, attached(server.uri, read_ahead=1):
        assert settings()[1] == os.sysconf("SC_PAGESIZE") // 1024
    with nbdkit("memory", "1M") as server, attached(server.uri, read_ahead=0):
        assert settings()[1] == 0


def test_another_setting_of_an_attached_device_is_refused() -> None:
    with nbdkit("memory", "1M") as server:
        nbd_ok("connect", *OPTIONS, server.uri, "nbd0")
        assert "already attached" in nbd("connect", *OPTIONS, server.uri, "nbd0").err
        assert "already attached" in nbd("connect", server.uri, "nbd0").err
        for option, cause in (
            (("--scheduler", "mq-deadline"), "with --scheduler none, not --scheduler mq-deadline"),
            (("--read-ahead", "0"), "with --read-ahead 4194304, not --read-ahead 0"),
        ):
            done = nbd("connect", *option, server.uri, "nbd0")
            assert (done.code, settings()) == (7, ("none", 4096))
            assert f"/dev/nbd0: {server.uri} is attached there {cause}" in done.err
        nbd_ok("disconnect", "nbd0")
        with attached(server.uri):
            done = nbd("connect", *OPTIONS, server.uri, "nbd0")
            assert done.code == 7
            assert "attached there with no --scheduler, not --scheduler none" in done.err


@pytest.mark.netlink
@pytest.mark.parametrize("kib", [0, 4096])  # below the kernel's default, and above
def test_both_outlast_a_restart_of_the_server_a_hand_over_and_a_resize(tmp_path: Path, kib: int) -> None:
    there = place(tmp_path, "image")
    with ExitStack() as servers:
        server = servers.enter_context(there.serve())
        with attached(server.uri, "nbd0", scheduler="none", read_ahead=kib * 1024):
            nbd_ok("reconnect", "nbd0")
            assert settings() == ("none", kib)
            server.kill()
            servers.enter_context(there.serve())
            eventually(lambda: '"connected"' in nbd_ok("status", "--json", "nbd0"))
            assert len(Path("/dev/nbd0").read_bytes()) == 16 * MIB
            assert settings() == ("none", kib)
            os.truncate(there.image, 20 * MIB)
            nbd_ok("resize", "nbd0")
            assert FIRST.size == 20 * MIB
            assert settings() == ("none", kib)
