# SPDX-License-Identifier: GPL-2.0-or-later
"""`doctor` against real problems of devices: it finds them, and they are gone after its remedy was run."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from leftovers import monitors, workers
from servers import nbdkit
from test_restart import place, state_of
from tool import BY_IOCTL, attached, command, connect, eventually, nbd, nbd_ok, partitioned_image, shell

from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel

FIRST = Kernel(Device(0))


def lines_about(subject: str, code: int) -> list[str]:
    """The findings of doctor about it, each with its remedy; the exit code is that one."""
    done = nbd("doctor")
    assert done.code == code, done
    return about(subject, done.out)


def about(subject: str, told: str) -> list[str]:
    lines = told.splitlines()
    found = [number for number, line in enumerate(lines) if line[4:].startswith(f"{subject}: ")]
    with_remedy = [line for number in found for line in lines[number : number + 2]]
    return [line for line in with_remedy if line[:2] not in ("ok", "--", "!!") or f"  {subject}: " in line]


def test_partitions_appear_even_with_max_part_0(tmp_path: Path) -> None:
    """Of a device of the module, and of one that netlink makes, if that is the backend."""
    shell("modprobe -r nbd && modprobe nbd max_part=0 nbds_max=1")
    try:
        assert lines_about("partitions", code=0) == [
            "ok  partitions: found, although the driver was loaded with max_part=0"
        ]
        for number in range(1 if BY_IOCTL else 2):
            with nbdkit("file", f"file={partitioned_image(tmp_path / 'image')}") as server:
                device = Device(number)
                nbd_ok("connect", server.uri, device.path)
                names = [f"{device.name}p1", f"{device.name}p2"]
                print(Kernel(device).partitions, shell("ls -l /dev/nbd*; cat /proc/partitions"))
                assert Kernel(device).partitions == names
                for name in names:
                    shell(f"dd if=/dev/{name} of=/dev/null bs=4096 count=1 status=none")
                shell(f"blockdev --rereadpt {device.path}")
                assert Kernel(device).partitions == names
                nbd_ok("disconnect", device.path)
                assert not Kernel(device).partitions
    finally:
        shell("modprobe -r nbd && modprobe nbd")


@pytest.mark.netlink
def test_in_another_network_namespace_the_netlink_family_is_there_since_6_12() -> None:
    done = subprocess.run(["unshare", "-n", *command("doctor")], capture_output=True, text=True, timeout=60)
    missing = [
        "--  netlink: the kernel has no netlink family nbd here, so a lost connection is not made again",
        "    run nbdattach in the network namespace of the host: docker run --network host",
    ]
    major, minor = os.uname().release.split(".")[:2]
    assert about("netlink", done.stdout) == (
        ["ok  netlink: usable"] if (int(major), int(minor)) >= (6, 12) else missing
    )


@pytest.mark.ioctl
def test_what_a_killed_worker_leaves_is_wedged() -> None:
    with nbdkit("memory", "1M") as server:
        connect(server.uri, "nbd0")
        with open("/dev/nbd0", "rb"):
            ((worker, _),) = workers()
            os.kill(worker, signal.SIGKILL)
            eventually(lambda: not workers())
            assert lines_about("/dev/nbd0", code=6) == [
                f"!!  /dev/nbd0: lost: no process serves it any more (it was process {worker})",
                "    stop the programs that use it, then: nbdattach disconnect /dev/nbd0",
            ]
        nbd_ok("disconnect", "/dev/nbd0")
        assert lines_about("/dev/nbd0", code=0) == []


@pytest.mark.netlink
def test_an_attachment_whose_server_is_away_is_not_wedged(tmp_path: Path) -> None:
    there = place(tmp_path, "image")
    with there.serve() as server, attached(server.uri, "nbd0"):
        server.kill()
        eventually(lambda: state_of("nbd0") == "reconnecting")
        said, remedy = lines_about("/dev/nbd0", code=0)
        assert said.startswith("--  /dev/nbd0: reconnecting since ")
        assert remedy == "    start the server, or use another one: nbdattach reconnect /dev/nbd0 TARGET"
        with there.serve():
            eventually(lambda: state_of("nbd0") == "connected")
            assert lines_about("/dev/nbd0", code=0) == []
            nbd_ok("disconnect", "nbd0")


def test_a_server_that_answers_nothing_does_not_hold_it_up() -> None:
    """A reader hangs in the kernel meanwhile."""
    with nbdkit("memory", "1M") as server, attached(server.uri, "nbd0"):
        server.pause()
        reader = subprocess.Popen(["dd", "if=/dev/nbd0", "of=/dev/null", "iflag=direct", "status=none"])
        eventually(lambda: FIRST.inflight)
        try:
            assert nbd("doctor", seconds=60).code == 0
            assert reader.poll() is None
        finally:
            server.resume()
        assert reader.wait(60) == 0


@pytest.mark.netlink
def test_a_monitor_that_is_gone_stands_in_the_way_of_what_relies_on_it() -> None:
    with nbdkit("memory", "1M") as server, attached(server.uri, "nbd0"), attached(server.uri, "nbd1", tag="other"):
        assert lines_about("monitor", code=0) == ["ok  monitor: running"]
        (monitor,) = monitors()
        os.kill(monitor, signal.SIGKILL)
        eventually(lambda: not monitors())
        assert lines_about("monitor", code=6) == [
            "!!  monitor: not running (Connection refused), so /dev/nbd0, /dev/nbd1 will not be reconnected",
            "    nbdattach monitor -b",
        ]
        nbd_ok("monitor", "-b")
        assert lines_about("monitor", code=0) == ["ok  monitor: running"]


@pytest.mark.netlink
def test_without_reconnect_nobody_misses_the_monitor() -> None:
    with nbdkit("memory", "1M") as server, attached(server.uri, "nbd0", reconnect=False):
        assert lines_about("monitor", code=0) == []


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(f"{BY_IOCTL} -t 5", marks=[pytest.mark.ioctl, pytest.mark.essential]),
        pytest.param("-t 5", marks=pytest.mark.netlink),
    ],
)
def test_a_time_out_of_another_program_is_found_and_can_be_lifted(tmp_path: Path, options: str) -> None:
    """A server that becomes slow answers after 8 s, to a client that gives it 5."""
    slow = tmp_path / "slow"
    read = f"if test -e {slow}; then sleep 8; fi; head -c $3 /dev/zero"
    with nbdkit("eval", "get_size=echo 1M", f"pread={read}") as server:
        shell(f"nbd-client {options} 127.0.0.1 {server.place[1]} /dev/nbd0")
        said, remedy = lines_about("/dev/nbd0", code=0)
        assert said.startswith(
            "--  /dev/nbd0: attached by another program, and gives up a server that needs 5 s for an answer"
        )
        # The guest of the first kernel has no debugfs.
        assert said.endswith(" only debugfs can show which") != os.path.exists("/sys/kernel/debug/nbd")
        shell(remedy)
        assert lines_about("/dev/nbd0", code=0) == []
        slow.touch()
        assert shell("dd if=/dev/nbd0 bs=4k count=1 iflag=direct status=none | wc -c").strip() == "4096"
        shell("nbd-client -d /dev/nbd0")
        eventually(lambda: not FIRST.attached)


@pytest.mark.spoils
def test_a_foreign_device_without_a_time_out_is_well() -> None:
    shell("modprobe -r nbd; modprobe nbd")  # the settings of the last one outlive it
    with nbdkit("memory", "1M") as server:
        shell(f"nbd-client {BY_IOCTL} 127.0.0.1 {server.place[1]} /dev/nbd0")
        assert lines_about("/dev/nbd0", code=0) == []
        nbd_ok("disconnect", "nbd0")


@pytest.mark.udev
def test_lvm_as_it_comes_is_worth_knowing_until_the_remedy_is_typed() -> None:
    said, remedy = lines_about("lvm", code=0)
    assert said.startswith("--  lvm: activates the volumes in attached images")
    shell(remedy)
    assert lines_about("lvm", code=0) == [
        "ok  lvm: its global_filter rejects nbd devices, so no volume on them can be used"
    ]
