# SPDX-License-Identifier: GPL-2.0-or-later
"""A look at the devices never waits for a dead disk, also not for that of another program."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import nbdkit
from tool import BY_IOCTL, TOOL, command, eventually, process_state, promised, shell

from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel

pytestmark = [pytest.mark.any_monitor, pytest.mark.spoils]

FIRST = Kernel(Device(0))
QUEUE = Path("/sys/block/nbd0/queue")
# Seconds; a look takes less than half of one on a slow machine.
A_MOMENT = 5


@contextlib.contextmanager
def silent_disk(options: str, then: str = "", place: str = "/mnt") -> Iterator[None]:
    """nbd0, attached by nbd-client; its server is silent, a request waits for it, and so does a change of the queue.

    Since Linux 6.12 each change waits for all requests, before that the one of the scheduler; and until it is done,
    no file of the queue can be read.
    """
    with nbdkit("memory", "32M") as server, contextlib.ExitStack() as end:
        shell(f"nbd-client {options} 127.0.0.1 {server.place[1]} /dev/nbd0 >/dev/null 2>&1")
        eventually(lambda: FIRST.attached and FIRST.size)
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt && sync")
        shell(then)
        scheduler = "mq-deadline" if "[none]" in (QUEUE / "scheduler").read_text() else "none"
        server.pause()
        try:
            end.enter_context(running("dd if=/dev/nbd0 of=/dev/null bs=4k count=1 skip=5000 iflag=direct"))
            eventually(lambda: FIRST.inflight)
            end.enter_context(waiting(f"echo {scheduler} >{QUEUE}/scheduler"))
            end.enter_context(waiting(f"echo 64 >{QUEUE}/max_sectors_kb"))
            reading = end.enter_context(waiting(f"exec cat {QUEUE}/logical_block_size"))
            yield
            assert process_state(reading.pid) == "D"
        finally:
            server.resume()
            end.close()
            shell(f"umount {place}; nbd-client -d /dev/nbd0")


@contextlib.contextmanager
def running(line: str) -> Iterator[subprocess.Popen[bytes]]:
    """Waits for its end."""
    null = subprocess.DEVNULL
    with subprocess.Popen(["sh", "-c", line], stdin=null, stdout=null, stderr=null) as process:
        yield process


@contextlib.contextmanager
def waiting(line: str) -> Iterator[subprocess.Popen[bytes]]:
    """It waits in the kernel by now."""
    with running(line) as process:
        eventually(lambda: process_state(process.pid) == "D", 10)
        yield process


def told_at_once(*words: str) -> str:
    """Standard output of a command that must not hang; one that does cannot be killed."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(words, stdout=out, stdin=subprocess.DEVNULL)
        end = time.monotonic() + promised(A_MOMENT)
        while process.poll() is None:
            assert time.monotonic() < end, f"{words} hangs"
            time.sleep(0.01)
        assert process.returncode == 0
        out.seek(0)
        return out.read()


LIVE = "from nbdattach.cli import screen; screen.samples([]); print(screen.samples([])[0].status.block_size)"


@pytest.mark.parametrize("options", ["", BY_IOCTL])
def test_a_look_does_not_wait_for_a_disk_of_another_program(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_disk(options):
        for words in ([], ["--json"], ["nbd0"], ["--format", "openmetrics"], ["-o", "all"]):
            assert told_at_once(*command("status", *words))
        (found,) = json.loads(told_at_once(*command("status", "--json")))
        assert (found["state"], found["mounts"], found["block_size"]) == ("connected", ["/mnt"], None)
        assert told_at_once(sys.executable, "-c", LIVE) == "None\n"
        monkeypatch.setenv("_NBDATTACH_COMPLETE", "bash_complete")
        for line in ("nbdattach status ", "nbdattach disconnect ", "nbdattach connect db1 "):
            monkeypatch.setenv("COMP_WORDS", line)
            monkeypatch.setenv("COMP_CWORD", str(len(line.split())))
            assert "/dev/nbd" in told_at_once(sys.executable, TOOL)


def test_nor_does_it_wait_for_one_that_hides_the_file_of_a_loop_device(tmp_path: Path) -> None:
    """The kernel tells the path, which leads into the folders of the disk by now."""
    folder, image = tmp_path / "folder", tmp_path / "folder/image"
    folder.mkdir()
    with contextlib.ExitStack() as end:
        loop = shell(f"modprobe -q loop; truncate -s 1M {image}; losetup -f --show {image}").strip()
        end.callback(shell, f"losetup -d {loop}")
        with silent_disk("", f"umount /mnt; mount /dev/nbd0 {folder}; echo 3 >/proc/sys/vm/drop_caches", str(folder)):
            looking = end.enter_context(waiting(f"exec stat {image}"))
            assert str(folder) in told_at_once(*command("status"))
            assert process_state(looking.pid) == "D"
