# SPDX-License-Identifier: GPL-2.0-or-later
"""What people build on a device, freeze, pass on or serve by systemd: it goes on when the server has restarted.

Run by `make neighbours`, with packages that `make test` does not need.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from leftovers import monitors
from servers import Server, free_port, nbdkit
from tool import connect, digest_of, eventually, nbd_ok, shell, sparse_file

pytestmark = [pytest.mark.timeout(600), pytest.mark.any_monitor]
MIB = 1 << 20
_INTEGRITY = "integritysetup --batch-mode"
_LUKS = "echo secret | cryptsetup"
_DMSETUP = "dmsetup --noudevsync --noudevrules"
_MKNODES = "dmsetup mknodes"


@dataclass
class Disks:
    """nbd0 and nbd1, and their servers, which end and begin together."""

    images: list[Path]
    ports: list[int]
    servers: list[Server] = field(default_factory=list)

    def serve(self, stack: ExitStack) -> None:
        self.servers = [
            stack.enter_context(nbdkit("file", f"file={image}", port=port))
            for image, port in zip(self.images, self.ports, strict=True)
        ]

    def restart(self, stack: ExitStack, away: float = 2.0) -> None:
        for server in self.servers:
            server.kill()
        time.sleep(away)
        self.serve(stack)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Disks, ExitStack]]:
    with ExitStack() as stack:
        disks = Disks([sparse_file(tmp_path / f"disk{n}", 400 * MIB) for n in range(2)], [free_port(), free_port()])
        disks.serve(stack)
        for number, server in enumerate(disks.servers):
            connect(server.uri, f"nbd{number}")
        yield disks, stack
        for number in range(2):
            nbd_ok("disconnect", f"nbd{number}")


@dataclass(frozen=True)
class Stack:
    """Shell commands: `use` ends with something mounted at /mnt, `check` sees the disks after `release`."""

    use: str
    release: str
    check: str = "true"


def _file_system(make: str, mount: str, check: str = "true") -> Stack:
    return Stack(f"{make} && mount {mount} /mnt", "umount /mnt", check)


STACKS = {
    "luks": Stack(
        f"""{_LUKS} luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/nbd0 - &&
        {_LUKS} open /dev/nbd0 disk -d - && mkfs.ext4 -q /dev/mapper/disk && mount /dev/mapper/disk /mnt""",
        "umount /mnt && e2fsck -fn /dev/mapper/disk && cryptsetup close disk",
    ),
    "integrity": Stack(
        f"""modprobe dm-integrity && {_INTEGRITY} format -q /dev/nbd0 && {_INTEGRITY} open /dev/nbd0 disk &&
        mkfs.ext4 -q /dev/mapper/disk && mount /dev/mapper/disk /mnt""",
        "umount /mnt && e2fsck -fn /dev/mapper/disk && integritysetup close disk",
    ),
    "md mirror": Stack(
        """modprobe raid1; mdadm --create /dev/md0 --run --metadata=1.2 --level=1 --raid-devices=2 /dev/nbd0 \
        /dev/nbd1 && mkfs.ext4 -q /dev/md0 && mount /dev/md0 /mnt""",
        "umount /mnt && grep UU /proc/mdstat && e2fsck -fn /dev/md0 && mdadm --stop /dev/md0",
        "cmp -i 1048576 $IMAGES",
    ),
    "btrfs mirror": _file_system(
        "mkfs.btrfs -q -f -d raid1 -m raid1 /dev/nbd0 /dev/nbd1 && btrfs device scan",
        "/dev/nbd0",
        "btrfs check -q /dev/nbd0",
    ),
    "thin": Stack(
        f"""modprobe dm-thin-pool && {_DMSETUP} create meta --table '0 65536 linear /dev/nbd1 0' && {_MKNODES} &&
        dd if=/dev/zero of=/dev/mapper/meta bs=4k count=1 && {_DMSETUP} create pool --table \
        '0 700000 thin-pool /dev/mapper/meta /dev/nbd0 128 0' && {_MKNODES} &&
        dmsetup message pool 0 'create_thin 0' &&
        {_DMSETUP} create disk --table '0 655360 thin /dev/mapper/pool 0' && {_MKNODES} &&
        mkfs.xfs -q /dev/mapper/disk && mount /dev/mapper/disk /mnt""",
        f"umount /mnt && xfs_repair -n /dev/mapper/disk && {_DMSETUP} remove disk pool && {_DMSETUP} remove meta",
        "thin_check -q /dev/nbd1",
    ),
    "bcache": Stack(
        """modprobe bcache && make-bcache -B /dev/nbd0 -C /dev/nbd1 --writeback && for disk in /dev/nbd0 /dev/nbd1; do
        echo $disk >/sys/fs/bcache/register; done && sleep 1 && mkfs.ext4 -q /dev/bcache0 && mount /dev/bcache0 /mnt""",
        """umount /mnt && e2fsck -fn /dev/bcache0 && echo 1 >/sys/block/bcache0/bcache/detach &&
        while [ -e /sys/block/bcache0/bcache/cache ]; do sleep 0.2; done &&
        echo 1 >/sys/block/bcache0/bcache/stop && echo 1 >$(echo /sys/fs/bcache/*-*-*)/unregister""",
    ),
    "ext4 with its journal on another disk": _file_system(
        "mke2fs -q -O journal_dev /dev/nbd1 && mkfs.ext4 -q -J device=/dev/nbd1 /dev/nbd0",
        "/dev/nbd0",
        "e2fsck -fn /dev/nbd0",
    ),
    "xfs with its log on another disk": _file_system(
        "mkfs.xfs -q -f -l logdev=/dev/nbd1,size=64m /dev/nbd0",
        "-o logdev=/dev/nbd1 /dev/nbd0",
        "xfs_repair -n -l /dev/nbd1 /dev/nbd0",
    ),
    "f2fs": _file_system("modprobe f2fs && mkfs.f2fs -q -f /dev/nbd0", "/dev/nbd0", "fsck.f2fs --dry-run /dev/nbd0"),
}


class Writer(threading.Thread):
    """Writes files to /mnt, each one synced; remembers their digests."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.errors: list[str] = []
        self.digests: dict[Path, str] = {}
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            path = Path(f"/mnt/{len(self.digests)}")
            try:
                with path.open("wb") as file:
                    file.write(os.urandom(64 << 10))
                    file.flush()
                    os.fsync(file.fileno())
                self.digests[path] = digest_of(path)
            except OSError as error:
                self.errors.append(str(error))
                return
            time.sleep(0.01)

    def see_it_write(self) -> None:
        count = len(self.digests) + 5
        eventually(lambda: self.errors or len(self.digests) > count)

    def end(self) -> None:
        self._over.set()
        self.join()
        assert self.errors == []


def read_again(digests: dict[Path, str]) -> None:
    shell("sync; echo 3 >/proc/sys/vm/drop_caches")
    assert {path: digest_of(path) for path in digests} == digests


TROUBLE = ("I/O error", "fs error", "orruption", "failure", "aborting")


@contextmanager
def no_error_in_the_kernels_log() -> Iterator[None]:
    shell("dmesg -C")
    yield
    lines = shell("dmesg").splitlines()
    assert not [line for line in lines for trouble in TROUBLE if trouble in line], lines


@contextmanager
def written_to(disks: Disks, stack: Stack) -> Iterator[Writer]:
    """The stack in use by a writer that meets no error; afterwards its files, and the disks, are right."""
    shell(stack.use)
    writer = Writer()
    with no_error_in_the_kernels_log():
        writer.start()
        yield writer
        writer.see_it_write()
        writer.end()
        read_again(writer.digests)
        shell(stack.release)
    shell(f"IMAGES='{' '.join(map(str, disks.images))}'; {stack.check}")


@pytest.mark.parametrize("kind", STACKS)
def test_what_is_built_on_two_disks_goes_on(two: tuple[Disks, ExitStack], kind: str) -> None:
    disks, servers = two
    with written_to(disks, STACKS[kind]) as writer:
        for _ in range(3):
            writer.see_it_write()
            disks.restart(servers)


@pytest.mark.parametrize("kind", ["md mirror", "btrfs mirror"])
def test_a_mirror_keeps_a_disk_whose_server_restarts(two: tuple[Disks, ExitStack], kind: str) -> None:
    """The other half answers meanwhile, and yet no half is thrown out."""
    disks, servers = two
    with written_to(disks, STACKS[kind]) as writer:
        writer.see_it_write()
        disks.servers[1].kill()
        time.sleep(5)
        servers.enter_context(nbdkit("file", f"file={disks.images[1]}", port=disks.ports[1]))


# -- programs that are stopped -----------------------------------------------------------------------------------------


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """By the freezer of its control group, as `systemctl freeze` and suspend do it."""
    group = Path("/sys/fs/cgroup/frozen")
    if not group.parent.joinpath("cgroup.procs").exists():
        shell("mount -t cgroup2 none /sys/fs/cgroup")
    group.mkdir(exist_ok=True)
    group.joinpath("cgroup.procs").write_text(str(pid))
    group.joinpath("cgroup.freeze").write_text("1")
    eventually(lambda: "frozen 1" in group.joinpath("cgroup.events").read_text())
    try:
        yield
    finally:
        group.joinpath("cgroup.freeze").write_text("0")
        group.parent.joinpath("cgroup.procs").write_text(str(pid))
        eventually(lambda: not group.joinpath("cgroup.procs").read_text())
        group.rmdir()


def monitor() -> int:
    (pid,) = monitors()
    return pid


def reconnects() -> float:
    text = nbd_ok("status", "--format", "openmetrics", "nbd0")
    (line,) = [line for line in text.splitlines() if line.startswith("nbdattach_device_reconnects_total")]
    return float(line.split()[-1])


def test_a_frozen_server_is_slow_and_not_dead(two: tuple[Disks, ExitStack]) -> None:
    disks, _ = two
    shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
    writer = Writer()
    with no_error_in_the_kernels_log():
        writer.start()
        writer.see_it_write()
        since = reconnects()
        with frozen(disks.servers[0].pid):
            time.sleep(8)
        writer.see_it_write()
        writer.end()
        assert reconnects() == since, "it was taken for dead"
        shell("umount /mnt && e2fsck -fn /dev/nbd0")


def test_a_monitor_that_was_frozen_meanwhile_reconnects(two: tuple[Disks, ExitStack]) -> None:
    disks, servers = two
    shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
    writer = Writer()
    with no_error_in_the_kernels_log():
        writer.start()
        writer.see_it_write()
        with frozen(monitor()):
            disks.restart(servers)
            time.sleep(3)
        writer.see_it_write()
        writer.end()
        read_again(writer.digests)
        shell("umount /mnt && e2fsck -fn /dev/nbd0")


# -- links and servers of systemd --------------------------------------------------------------------------------------


def test_a_bond_whose_active_link_is_cut_is_no_event(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "disk", 64 * MIB)
    shell("""modprobe bonding; ip netns add far
        for n in 0 1; do ip link add near$n type veth peer far$n netns far; done
        for at in near far; do
        run="ip netns exec far"; [ $at = far ] || run=
        $run ip link add bond-$at type bond mode active-backup miimon 50
        for n in 0 1; do $run ip link set $at$n down; $run ip link set $at$n master bond-$at; done
        $run ip link set bond-$at up; $run ip addr add 10.8.0.$([ $at = near ] && echo 1 || echo 2)/24 dev bond-$at
        done""")
    try:
        with nbdkit("file", f"file={image}", namespace="far", address="10.8.0.2") as server:
            connect(server.uri, "nbd0")
            shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
            writer = Writer()
            with no_error_in_the_kernels_log():
                writer.start()
                for number in (0, 1):
                    writer.see_it_write()
                    shell(f"ip link set near{1 - number} up; ip link set near{number} down")
                writer.see_it_write()
                writer.end()
                assert reconnects() == 0
                shell("umount /mnt && e2fsck -fn /dev/nbd0")
            nbd_ok("disconnect", "nbd0")
    finally:
        shell("ip link del bond-near; ip link del near0; ip link del near1; ip netns del far")


def test_a_server_that_a_socket_of_systemd_starts_may_end_when_nobody_uses_it(tmp_path: Path) -> None:
    """As with nbdkit@.socket and --filter=exitlast: it ends after each connection, and the next one starts it."""
    image, port = sparse_file(tmp_path / "disk", 64 * MIB), free_port()
    words = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}"]
    serve = ["nbdkit", "-f", "--filter=exitlast", "file", f"file={image}"]

    @contextmanager
    def socket_unit() -> Iterator[None]:
        """It becomes the server itself, so a loop does for the unit."""
        with subprocess.Popen(["sh", "-c", f"while :; do {shlex.join(words + serve)}; done"], process_group=0) as loop:
            try:
                eventually(lambda: f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text())
                yield
            finally:
                os.killpg(loop.pid, signal.SIGKILL)

    with socket_unit():
        nbd_ok("connect", f"127.0.0.1:{port}", "nbd0")
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        writer = Writer()
        with no_error_in_the_kernels_log():
            writer.start()
            for _ in range(3):
                writer.see_it_write()
                shell(f"pkill -KILL -f '^nbdkit.*{image}'")
            writer.see_it_write()
            writer.end()
            read_again(writer.digests)
            shell("umount /mnt && e2fsck -fn /dev/nbd0")
        nbd_ok("disconnect", "nbd0")
