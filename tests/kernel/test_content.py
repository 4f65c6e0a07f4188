# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that comes back with another disk gets not one byte; the right one goes on, whatever the user did to it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from disks import KINDS, used
from leftovers import monitors
from servers import Server
from test_restart import Place, place, state_of, trouble_of
from tool import attached, digest_of, eventually, nbd, nbd_ok, shell

from nbdattach.attached import memory
from nbdattach.device import Device

pytestmark = [pytest.mark.netlink, pytest.mark.any_monitor, pytest.mark.timeout(300)]
DEVICE = Device(0)
SAMPLED = ["ext4", "gpt", "raw"]
RARE = [pytest.param(name, marks=() if name in SAMPLED else pytest.mark.rare) for name in KINDS]
# An older state of swap space, whose content says nothing, cannot be told.
WITH_HISTORY = [param for param in RARE if param.values != ("swap",)]


def made(folder: Path, name: str, kind: str) -> Place:
    return place(folder, name, mebibytes=KINDS[kind].mebibytes)


def filled(one: Place, kind: str) -> None:
    with one.serve() as server, attached(server.uri, "nbd0"):
        shell(KINDS[kind].make)
        shell("sync")


def remembered() -> bool:
    """Whether the memory of the disk is up to date."""
    found = memory.load(DEVICE)
    return found is not None and not found.moment.is_before_changes(memory.moment_of(DEVICE))


def is_refused() -> bool:
    return "another disk" in trouble_of("nbd0")


def still_works(kind: str) -> None:
    eventually(lambda: state_of("nbd0") == "connected")
    shell(KINDS[kind].change)


@contextmanager
def in_its_place(one: Place, image: Path) -> Iterator[Server]:
    """A server of another image, which is refused and gets no byte."""
    before = digest_of(image)
    with one.serve(image=image) as other:
        eventually(is_refused)
        yield other
        assert is_refused()
        other.kill()
    assert digest_of(image) == before


@pytest.mark.parametrize("kind", RARE)
def test_another_image_of_the_same_size_is_refused_until_the_right_one_returns(tmp_path: Path, kind: str) -> None:
    right, wrong = made(tmp_path, "right", kind), made(tmp_path, "wrong", kind)
    filled(wrong, kind)
    with ExitStack() as servers:
        server = servers.enter_context(right.serve())
        with attached(server.uri, "nbd0"):
            shell(KINDS[kind].make)
            with used(KINDS[kind]):
                shell("sync")
                eventually(remembered, 120)
                server.kill()
                with in_its_place(right, wrong.image):
                    writer = subprocess.Popen(["sh", "-c", KINDS[kind].change], stderr=subprocess.DEVNULL)
                    time.sleep(3)
                servers.enter_context(right.serve())
                assert writer.wait(120) == 0
                still_works(kind)


@pytest.mark.parametrize("kind", WITH_HISTORY)
def test_an_older_state_is_refused_until_the_right_one_returns(tmp_path: Path, kind: str) -> None:
    right = made(tmp_path, "right", kind)
    with ExitStack() as servers:
        server = servers.enter_context(right.serve())
        with attached(server.uri, "nbd0"):
            shell(KINDS[kind].make)
            with used(KINDS[kind]):
                shell(KINDS[kind].change)
                shell("sync")
                old = Path(shutil.copyfile(right.image, tmp_path / "old"))
                for _ in range(3):
                    shell(KINDS[kind].change)
                shell("sync")
                eventually(remembered, 120)
                shell("sync /dev/nbd0")  # from now on, what was written is there for good
                server.kill()
                with in_its_place(right, old):
                    print(kind, trouble_of("nbd0"))
                    time.sleep(2)
                servers.enter_context(right.serve())
                still_works(kind)


@pytest.mark.parametrize("kind", RARE)
def test_a_disk_that_was_made_anew_goes_on_after_a_restart_at_once(tmp_path: Path, kind: str) -> None:
    one = made(tmp_path, "image", "xfs")
    with ExitStack() as servers:
        server = servers.enter_context(one.serve())
        with attached(server.uri, "nbd0"):
            for each in ("ext4", kind, "ext4"):
                shell(KINDS[each].make)
                server.kill()
                server = servers.enter_context(one.serve())
                with used(KINDS[each]):
                    still_works(each)


@pytest.mark.essential
def test_another_machine_under_the_same_name_gets_nothing(tmp_path: Path) -> None:
    """It is dialled only if the name no longer has the address of the right one."""
    hosts = Path("/etc/hosts")
    before = hosts.read_text()
    right, wrong = made(tmp_path, "right", "ext4"), made(tmp_path, "wrong", "ext4")
    filled(wrong, "ext4")
    untouched = digest_of(wrong.image)
    try:
        with ExitStack() as servers:
            server = servers.enter_context(right.serve(address="127.0.0.2"))
            servers.enter_context(right.serve(image=wrong.image, address="127.0.0.3"))
            hosts.write_text("127.0.0.2 nbd.example\n")
            with attached(f"nbd.example:{right.port}", "nbd0"):
                shell(KINDS["ext4"].make)
                with used(KINDS["ext4"]):
                    shell("sync")
                    eventually(remembered, 120)
                    hosts.write_text("127.0.0.2 nbd.example\n127.0.0.3 nbd.example\n")
                    server.kill()
                    time.sleep(3)
                    assert "Connection refused" in trouble_of("nbd0")
                    hosts.write_text("127.0.0.3 nbd.example\n")
                    eventually(is_refused)
                    assert digest_of(wrong.image) == untouched
                    hosts.write_text("127.0.0.2 nbd.example\n")
                    servers.enter_context(right.serve(address="127.0.0.2"))
                    still_works("ext4")
    finally:
        hosts.write_text(before)
    assert digest_of(wrong.image) == untouched


def test_the_user_may_trust_another_disk(tmp_path: Path) -> None:
    right, wrong = made(tmp_path, "right", "ext4"), made(tmp_path, "wrong", "ext4")
    filled(wrong, "ext4")
    with ExitStack() as servers:
        server = servers.enter_context(right.serve())
        with attached(server.uri, "nbd0"):
            shell(KINDS["ext4"].make)
            eventually(remembered)
            server.kill()
            servers.enter_context(right.serve(image=wrong.image))
            eventually(is_refused)
            refused = nbd("reconnect", "nbd0")
            assert refused.code == 4
            assert "this is another disk: it has ext4" in refused.err
            assert refused.err.splitlines()[1] == (
                "(nbdattach reconnect --trust /dev/nbd0 accepts it, if it is the right one)"
            )
            nbd_ok("reconnect", "--trust", "nbd0")
            assert state_of("nbd0") == "connected"
            eventually(remembered)
            with used(KINDS["ext4"]):
                still_works("ext4")


def test_an_attachment_of_a_release_without_memory_goes_on_and_is_remembered(tmp_path: Path) -> None:
    one, other = made(tmp_path, "image", "ext4"), made(tmp_path, "other", "ext4")
    filled(one, "ext4")
    filled(other, "ext4")
    with ExitStack() as servers:
        server = servers.enter_context(one.serve())
        with attached(server.uri, "nbd0"):
            os.kill(monitors()[0], signal.SIGKILL)
            eventually(lambda: not monitors())
            memory.forget(DEVICE)
            nbd_ok("monitor", "-b")
            eventually(remembered)
            server.kill()
            with in_its_place(one, other.image):
                pass
            servers.enter_context(one.serve())
            eventually(lambda: state_of("nbd0") == "connected")


# -- what may never be refused wrongly, and a look that may never be in the way ----------------------------------------

_MD_AT_THE_END = (
    "echo y | mdadm -q --create /dev/md0 --run --metadata=1.0 --level=1 --force --raid-devices=1 /dev/nbd0 2>&1"
)
CHANGES = {
    "discarded": "blkdiscard -f /dev/nbd0",
    "discarded in part": "blkdiscard -f -o 0 -l 4194304 /dev/nbd0",
    "zeroed": "blkdiscard -f -z /dev/nbd0",
    "an image over an image": "dd if=/dev/urandom of=/dev/nbd0 bs=1M count=8 conv=fsync 2>/dev/null",
    "a file system on md": f"{_MD_AT_THE_END} && mkfs.ext4 -q -F /dev/md0 && mdadm -q --stop /dev/md0",
    "fsck": "mkfs.ext4 -q -F /dev/nbd0 && e2fsck -f -y /dev/nbd0 >/dev/null",
    "another uuid": "mkfs.ext4 -q -F /dev/nbd0 && tune2fs -U random /dev/nbd0 >/dev/null",
    "a new journal": "mkfs.ext4 -q -F /dev/nbd0 && tune2fs -O ^has_journal /dev/nbd0 && tune2fs -j /dev/nbd0",
    "swap": "mkswap /dev/nbd0 && swapon /dev/nbd0 && swapoff /dev/nbd0 && mkswap /dev/nbd0",
}


SAMPLED_CHANGES = ("discarded in part", "an image over an image", "a file system on md")


@pytest.mark.parametrize(
    "change",
    [pytest.param(name, marks=() if name in SAMPLED_CHANGES else pytest.mark.rare) for name in CHANGES],
)
def test_a_change_by_any_way_goes_on_after_a_restart_at_once(tmp_path: Path, change: str) -> None:
    one = place(tmp_path, "image", mebibytes=64)
    shell(f"dd if=/dev/urandom of={one.image} bs=1M count=8 conv=notrunc 2>/dev/null; mkfs.ext4 -q -F {one.image}")
    with ExitStack() as servers:
        server = servers.enter_context(one.serve())
        with attached(server.uri, "nbd0"):
            eventually(remembered, 120)
            shell(CHANGES[change])
            server.kill()
            servers.enter_context(one.serve())
            eventually(lambda: state_of("nbd0") == "connected", 20)


def commit(folder: Path) -> None:
    """A transaction of the journal. In this process: in a guest, a shell's commands for it take ten times as long."""
    folder.mkdir(parents=True)
    with Path(folder, "file").open("wb") as file:
        os.fsync(file)


def test_a_journal_that_wraps_is_the_same_one(tmp_path: Path) -> None:
    """Again and again, with a restart after each round: witnesses are overwritten by later transactions."""
    one = place(tmp_path, "image", mebibytes=64)
    with ExitStack() as servers:
        server = servers.enter_context(one.serve())
        with attached(server.uri, "nbd0"):
            shell("mkfs.ext4 -q -F -b 1024 -J size=1 /dev/nbd0")
            with used(KINDS["ext4"]):
                for _ in range(8):
                    for number in range(150):
                        commit(Path(f"/mnt/{number}", secrets.token_hex(4)))
                    server.kill()
                    server = servers.enter_context(one.serve())
                    eventually(lambda: state_of("nbd0") == "connected", 20)


def test_a_look_that_hangs_delays_nothing(tmp_path: Path) -> None:
    """Its process waits in the kernel for a server that is stopped; it is no user of the device."""
    one = place(tmp_path, "image", mebibytes=64)
    with one.serve() as server, attached(server.uri, "nbd0", on_loss=0):
        eventually(remembered)
        server.pause()
        shell("(dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 oflag=direct 2>/dev/null & sleep 0.2; kill $!) || true")
        time.sleep(3)
        server.kill()
        done = nbd("disconnect", "--force", "nbd0")
        assert "nbdattach-look" not in done.err
        eventually(lambda: nbd("status", "--json").json() == [])


def hanging_looks() -> list[str]:
    """Processes that wait in the kernel."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            stat = Path(f"/proc/{name}/stat").read_text()
            if "(nbdattach-look) D" in stat:
                found.append(name)
    return found


def test_a_monitor_that_dies_while_a_look_hangs_leaves_nothing_in_the_way_of_the_next(tmp_path: Path) -> None:
    one = place(tmp_path, "image", mebibytes=64)
    write = "dd if=/dev/urandom of=/dev/nbd0 bs=4k count=1 oflag=direct 2>/dev/null"
    with ExitStack() as servers:
        server = servers.enter_context(one.serve())
        with attached(server.uri, "nbd0"):
            eventually(remembered)
            time.sleep(5)  # so that the next look comes a second after its reason
            shell(write)
            server.pause()
            eventually(hanging_looks, 20)
            os.kill(monitors()[0], signal.SIGKILL)
            eventually(lambda: not monitors(), 5)
            nbd_ok("monitor", "-b")
            server.kill()
            servers.enter_context(one.serve())
            shell(write)
            eventually(lambda: not hanging_looks(), 5)
            assert state_of("nbd0") == "connected"


def test_trust_that_fails_changes_nothing(tmp_path: Path) -> None:
    right, wrong = made(tmp_path, "right", "ext4"), made(tmp_path, "wrong", "ext4")
    filled(wrong, "ext4")
    with ExitStack() as servers:
        server = servers.enter_context(right.serve())
        with attached(server.uri, "nbd0"):
            shell(KINDS["ext4"].make)
            eventually(remembered)
            server.kill()
            with in_its_place(right, wrong.image):
                assert nbd("reconnect", "--trust", "nbd0", "nbd://127.0.0.1:1/").code == 3
                time.sleep(3)
            servers.enter_context(right.serve())
            eventually(lambda: state_of("nbd0") == "connected")


def test_a_smaller_disk_must_be_the_same_one(tmp_path: Path) -> None:
    right, wrong = place(tmp_path, "right", mebibytes=64), place(tmp_path, "wrong", mebibytes=48)
    shell(f"mkfs.ext4 -q -F {wrong.image}")
    with ExitStack() as servers:
        server = servers.enter_context(right.serve())
        with attached(server.uri, "nbd0"):
            shell("mkfs.ext4 -q -F /dev/nbd0 40M")
            eventually(remembered)
            server.kill()
            with right.serve(image=wrong.image) as other:
                done = nbd("resize", "nbd0")
                assert (done.code, "this is another disk" in done.err) == (4, True)
                other.kill()
            with right.image.open("r+b") as image:
                image.truncate(48 << 20)
            servers.enter_context(right.serve())
            assert nbd("resize", "nbd0").code == 0
            eventually(remembered)
