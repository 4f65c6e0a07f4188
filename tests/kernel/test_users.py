# SPDX-License-Identifier: GPL-2.0-or-later
"""A user of a device keeps it attached: disconnect refuses, names the user and the command that releases it.

The tests run the command in each line of the list, and it releases that user.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from servers import nbdkit
from tool import (
    BY_IOCTL,
    attached,
    command,
    connect,
    digest_of,
    eventually,
    fill_with_noise,
    nbd,
    nbd_ok,
    partitioned_image,
    process_state,
    promised,
    runs,
    shell,
    sparse_file,
)

import nbdattach
from nbdattach.attached import state, status
from nbdattach.device import Device
from nbdattach.host import procfs
from nbdattach.kernel.node import Node
from nbdattach.kernel.sysfs import Kernel
from nbdattach.monitor import control
from nbdattach.operations import claim

pytestmark = pytest.mark.any_monitor

FIRST = Kernel(Device(0))
MIB = 1 << 20
_MAPPERS = 7
# Its first thread does not wait for the disk.
MAPS_AGAIN_AND_AGAIN = """import mmap, os, sys, threading, time
file = os.open(sys.argv[1], os.O_RDWR)
def work():
    mmap.mmap(file, 1)
    print(flush=True)
    while True:
        mmap.mmap(file, 1)
        time.sleep(0.01)
threading.Thread(target=work).start()
"""
OPENER = "import os, sys, time; fd = os.open(sys.argv[1], int(sys.argv[2])); print(flush=True); time.sleep(600)"


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    shell("modprobe -a dm-mod md-mod raid1 loop")


def use(place: str = "/mnt") -> None:
    """The file system mounted there works."""
    Path(f"{place}/file").write_bytes(os.urandom(MIB))
    shell(f"sync -f '{place}'")


def mounted(what: str) -> str:
    shell(f"mkfs.ext4 -q {what} && mount {what} /mnt")
    use()
    return "mounted at /mnt: umount /mnt"


def bind_mounted() -> str:
    mounted("/dev/nbd0")
    shell("mkdir -p '/run/other place' && mount --bind /mnt '/run/other place' && umount /mnt")
    use("/run/other place")
    return "mounted at /run/other place: umount '/run/other place'"


def swapped_on() -> str:
    shell("mkswap /dev/nbd0p2 && swapon /dev/nbd0p2")
    return "swapped on: swapoff /dev/nbd0p2"


def mapping(name: str) -> str:
    """Its kernel name; no udev runs here to make a link of it."""
    return f"dm-{os.minor(os.stat(f'/dev/mapper/{name}').st_rdev)}"


def mapped(what: str = "/dev/nbd0") -> str:
    shell(f"dmsetup create --noudevsync --noudevrules one --table '0 8192 linear {what} 0' && dmsetup mknodes")
    fill_with_noise("/dev/mapper/one", 1)
    return f"held by {mapping('one')} (device mapper device one): dmsetup remove one"


def logical_volume() -> str:
    # No udev runs here, so LVM makes its nodes by itself.
    settings = "devices{use_devicesfile=0} activation{udev_sync=0 udev_rules=0}"
    shell(f"""export LVM_SUPPRESS_FD_WARNINGS=1
        mkdir -p /etc/lvm && echo '{settings}' > /etc/lvm/lvmlocal.conf
        pvcreate -q /dev/nbd0 && vgcreate -q group /dev/nbd0 && lvcreate -q -n volume -L 4M -Wn -Zn group""")
    fill_with_noise("/dev/mapper/group-volume", 1)
    uuid = shell("lvs --noheadings -o lv_uuid group/volume").strip()
    return f"held by {mapping('group-volume')} (LVM volume group-volume): lvchange -an --select lv_uuid={uuid}"


def in_an_array() -> str:
    shell("mdadm --create /dev/md0 --run --metadata=1.2 --level=1 --force --raid-devices=1 /dev/nbd0 2>&1")
    fill_with_noise("/dev/md0", 1)
    return "held by md0 (an md array): mdadm --stop /dev/md0"


def looped() -> str:
    loop = shell("losetup -f --show /dev/nbd0").strip()
    fill_with_noise(loop, 1)
    return f"held by {loop[5:]} (a loop device): losetup -d {loop}"


def opened(flags: int, path: str = "/dev/nbd0") -> Callable[[], str]:
    def begin() -> str:
        opener = subprocess.Popen([sys.executable, "-c", OPENER, path, str(flags)], stdout=subprocess.PIPE)
        assert opener.stdout and opener.stdout.readline()
        with open(f"/proc/{opener.pid}/comm") as file:
            name = file.read().strip()
        return f"open in process {opener.pid} ({name}): kill {opener.pid}"

    return begin


def mapped_and_closed(path: str = "/dev/nbd0") -> str:
    """Its writes go to the device at some later time, as those of any descriptor."""
    program = f"import mmap, os, time; fd = os.open('{path}', os.O_RDWR); m = mmap.mmap(fd, 4096);"
    program += " os.closerange(fd, 64);"  # mmap has a duplicate
    program += " m[0:5] = b'hello'; m.flush(); print(flush=True); time.sleep(600)"
    mapper = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert mapper.stdout and mapper.stdout.readline()
    return f"mapped in process {mapper.pid} ({procfs.name_of(mapper.pid)}): kill {mapper.pid}"


def mounted_elsewhere() -> str:
    shell("mkfs.ext4 -q /dev/nbd0")
    program = "mount --make-rprivate / && mount /dev/nbd0 /mnt && touch /run/elsewhere && exec sleep 600"
    holder = subprocess.Popen(["unshare", "-m", "sh", "-c", program])
    eventually(lambda: Path("/run/elsewhere").exists() or holder.poll() is not None)
    where = f"mounted at /mnt in the mount namespace of process {holder.pid} (sleep)"
    return f"{where}: nsenter -m -t {holder.pid} umount /mnt"


def mounted_in_a_users_namespace() -> str:
    """The hint must not make root run that namespace's program umount, which may be any program."""
    shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
    holder = subprocess.Popen(["unshare", "-U", "-r", "-m", "sh", "-c", "touch /run/elsewhere && exec sleep 600"])
    eventually(lambda: Path("/run/elsewhere").exists() or holder.poll() is not None)
    shell("umount /mnt")
    where = f"mounted at /mnt in the mount namespace of process {holder.pid} (sleep)"
    return f"{where}: kill {holder.pid}"


def mounted_in_a_container() -> str:
    """It is root's own, but its programs are those of its image."""
    shell("mkfs.ext4 -q /dev/nbd0")
    program = """mount --make-rprivate / && mount -t tmpfs none /mnt && cd /mnt && mkdir usr disk old &&
        mount --bind /usr usr && ln -s usr/bin usr/lib usr/lib64 . && mount /dev/nbd0 disk && pivot_root . old &&
        exec /bin/sleep 600"""
    holder = subprocess.Popen(["unshare", "-m", "sh", "-c", program])
    eventually(lambda: procfs.name_of(holder.pid) == "sleep" or holder.poll() is not None)
    where = f"mounted at /disk in the mount namespace of process {holder.pid} (sleep)"
    return f"{where}: kill {holder.pid}"


USERS: dict[str, Callable[[], str]] = {
    "mount": lambda: mounted("/dev/nbd0"),
    "mount of a partition": lambda: mounted("/dev/nbd0p1"),
    "bind mount": bind_mounted,
    "mount in another namespace": mounted_elsewhere,
    "mount in a user's namespace": mounted_in_a_users_namespace,
    "mount in a container": mounted_in_a_container,
    "swap": swapped_on,
    "dm": mapped,
    "LVM": logical_volume,
    "md": in_an_array,
    "loop": looped,
    "exclusive opener": opened(os.O_RDWR | os.O_EXCL),
    "opener": opened(os.O_RDWR),
    "reader": opened(os.O_RDONLY),
    "mapping": mapped_and_closed,
}


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    """So that one failure causes no others."""
    yield
    subprocess.run(
        """exec 2>/dev/null
        umount -R /mnt "/run/other place"; swapoff -a; losetup -D; mdadm --stop --scan; dmsetup remove_all
        pkill -f "[o]s.open"; pkill sleep; rm -f /run/elsewhere; true""",
        shell=True,
        stdout=subprocess.DEVNULL,
    )


@contextlib.contextmanager
def attached_image(tmp_path: Path, partitions: bool) -> Iterator[None]:
    image = partitioned_image(tmp_path / "image", 64)
    if not partitions:
        sparse_file(image, 64 * MIB)
    with nbdkit("file", f"file={image}") as server:
        connect(server.uri, "nbd0")
        yield


def test_a_file_system_that_was_frozen_when_it_was_unmounted_can_be_released_as_the_hint_says(tmp_path: Path) -> None:
    """The kernel keeps it, and its disk, though no mount shows it; so --release cannot go on."""
    with attached_image(tmp_path, False):
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt && echo kept >/mnt/file && fsfreeze -f /mnt")
        done = nbd("disconnect", "--release", "nbd0")
        assert (done.code, FIRST.attached) == (7, True), done
        assert done.err.endswith("mount it again, then fsfreeze -u)\n")
        shell("mount /dev/nbd0 /mnt && fsfreeze -u /mnt && grep -q kept /mnt/file && umount /mnt")
        nbd_ok("disconnect", "nbd0")


@pytest.mark.parametrize("kind", USERS)
def test_a_user_is_named_unharmed_and_once_released_it_goes(tmp_path: Path, kind: str) -> None:
    with attached_image(tmp_path, kind in ("mount of a partition", "swap")):
        line = USERS[kind]()
        done = nbd("disconnect", "nbd0")
        assert (done.code, done.out) == (7, ""), done
        first, *listed, hint = done.err.splitlines()
        says, _, release = line.rpartition(": ")
        assert (first, listed, hint) == (f"nbdattach: /dev/nbd0: {says}", [f"  {line}"], "(release it first)")
        assert FIRST.attached and FIRST.size == 64 * MIB
        shell(f"dd if=/dev/nbd0 of=/dev/null bs=1M iflag=direct status=none && {release}")  # it still works
        eventually(lambda: nbd("disconnect", "nbd0").code == 0)
        assert not FIRST.attached and not FIRST.size


ON_TWO_DISKS = {
    "journal of ext4": """mke2fs -q -F -O journal_dev /dev/nbd0 32M && mkfs.ext4 -q -F -J device=/dev/nbd0 $other &&
        mount $other /mnt""",
    "log of xfs": """mkfs.xfs -q -f -l logdev=/dev/nbd0,size=64m $other && mount -o logdev=/dev/nbd0 $other /mnt""",
    "btrfs": "mkfs.btrfs -q -f $other /dev/nbd0 && btrfs device scan && mount $other /mnt",
}


@pytest.mark.parametrize("kind", ON_TWO_DISKS)
def test_a_file_system_that_names_another_disk_is_named(tmp_path: Path, kind: str) -> None:
    other = shell(f"losetup -f --show {sparse_file(tmp_path / 'other', 400 * MIB)}").strip()
    with nbdkit("memory", "400M") as server:
        connect(server.uri, "nbd0")
        shell(f"modprobe loop; other={other}; {ON_TWO_DISKS[kind]}")
        done = nbd("disconnect", "nbd0")
        assert (done.code, done.err.splitlines()[1:2]) == (7, ["  mounted at /mnt: umount /mnt"])
        shell("umount /mnt")
        nbd_ok("disconnect", "nbd0")


def test_who_is_on_a_file_system_that_was_unmounted_lazily_is_named(tmp_path: Path) -> None:
    with attached_image(tmp_path, False):
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        with subprocess.Popen(["sleep", "600"], cwd="/mnt") as sleeper:
            shell("umount -l /mnt")
            done = nbd("disconnect", "nbd0")
            says = f"its file system, unmounted with umount -l, is in use by process {sleeper.pid} (sleep)"
            assert (done.code, done.err.splitlines()[1:2]) == (7, [f"  {says}: kill {sleeper.pid}"])
            sleeper.kill()
        eventually(lambda: nbd("disconnect", "nbd0").code == 0)


@pytest.mark.parametrize("kind", ["fileio", "iblock"])
def test_a_disk_that_the_kernel_passes_on_is_kept(tmp_path: Path, kind: str) -> None:
    """No process has it open, and of a file the kernel makes no claim."""
    place = f"/sys/kernel/config/target/core/{kind}_0/disk"
    settings = {"fileio": f"fd_dev_name=/dev/nbd0,fd_dev_size={64 * MIB}", "iblock": "udev_path=/dev/nbd0"}
    with attached_image(tmp_path, False):
        shell(f"""modprobe -a configfs target_core_{"file" if kind == "fileio" else kind}
            mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
            mkdir -p {place} && echo {settings[kind]} >{place}/control && echo 1 >{place}/enable""")
        done = nbd("disconnect", "nbd0")
        line = f"  passed on by the kernel's SCSI target as disk: see {place}"
        assert (done.code, done.err.splitlines()[1:2], FIRST.attached) == (7, [line], True)
        shell(f"rmdir {place} {Path(place).parent}")
        nbd_ok("disconnect", "nbd0")


def test_programs_that_wait_for_a_dead_disk_with_their_memory_locked_hide_no_user_and_hold_up_no_other_detach() -> None:
    """mmap of a file writes its time of access, which waits for the file system's journal, which waits for the disk."""
    with nbdkit("memory", "64M") as dead, nbdkit("memory", "1M") as alive, attached(dead.uri, "nbd0"):
        shell("mkfs.ext4 -q /dev/nbd0 && mount -o strictatime /dev/nbd0 /mnt && sync -f /mnt")
        with contextlib.ExitStack() as stack:
            stack.callback(shell, "umount /mnt")
            mappers = []
            for number in range(_MAPPERS):
                file = f"/mnt/{number}"
                shell(f"echo 1 >{file} && sync {file}")
                mappers.append(
                    stack.enter_context(subprocess.Popen([sys.executable, "-c", MAPS_AGAIN_AND_AGAIN, file]))
                )
                stack.callback(mappers[-1].kill)
            stack.callback(os.kill, dead.pid, signal.SIGCONT)
            time.sleep(1)
            os.kill(dead.pid, signal.SIGSTOP)
            stack.enter_context(subprocess.Popen(["sync", "-f", "/mnt"]))
            stack.callback(os.kill, dead.pid, signal.SIGCONT)
            for one in mappers:
                eventually(lambda one=one: not _shows_its_memory(one.pid))  # type: ignore[misc]
            connect(alive.uri, "nbd1")
            line = mapped_and_closed("/dev/nbd1")
            done = nbd("disconnect", "nbd1")
            assert (done.code, done.err.splitlines()[-2]) == (7, f"  {line}")
            shell(line.rpartition(": ")[2])
            begun = time.monotonic()
            done = nbd("disconnect", "nbd1")
            assert time.monotonic() - begun < promised(40)
            assert (done.code, f"and {_MAPPERS - 3} more is locked, as while a disk is away" in done.err) == (0, True)
            assert not any(_shows_its_memory(one.pid) for one in mappers)


def _shows_its_memory(pid: int) -> bool:
    reader = subprocess.Popen(["cat", f"/proc/{pid}/maps"], stdout=subprocess.DEVNULL)
    try:
        return reader.wait(1) == 0
    except subprocess.TimeoutExpired:
        reader.kill()
        reader.wait()
        return False


def test_what_stands_on_top_of_each_other_is_listed_in_the_order_of_its_release(tmp_path: Path) -> None:
    with attached_image(tmp_path, True):
        mapped("/dev/nbd0p1")
        shell("mkfs.ext4 -q /dev/mapper/one && mount /dev/mapper/one /mnt")
        swapped_on()
        (found,) = nbd("status", "--json").json()
        holder = mapping("one")
        assert (found["mounts"], found["holders"]) == ([], [holder, "swap"])
        done = nbd("disconnect", "nbd0")
        assert done.err.splitlines() == [
            f"nbdattach: /dev/nbd0: mounted at /mnt, held by {holder} (device mapper device one), swapped on",
            "  mounted at /mnt: umount /mnt",
            f"  held by {holder} (device mapper device one): dmsetup remove one",
            "  swapped on: swapoff /dev/nbd0p2",
            "(release it first, from the top)",
        ]
        for line in done.err.splitlines()[1:-1]:
            shell(line.rpartition(": ")[2])
        nbd_ok("disconnect", "nbd0")


def test_who_opens_it_for_a_moment_is_no_user() -> None:
    with nbdkit("memory", "1M") as server:
        connect(server.uri, "nbd0")
        with subprocess.Popen([sys.executable, "-c", OPENER.replace("600", "1"), "/dev/nbd0", str(os.O_RDWR)]):
            time.sleep(0.3)
            nbd_ok("disconnect", "nbd0")
        assert not FIRST.attached


def test_an_opener_by_another_name_than_that_in_dev_is_named(tmp_path: Path) -> None:
    shell(f"mknod {tmp_path}/node b 43 0")
    with nbdkit("memory", "1M") as server, attached(server.uri, "nbd0"):
        line = opened(os.O_RDONLY, f"{tmp_path}/node")()
        done = nbd("disconnect", "nbd0")
        assert (done.code, done.err.splitlines()[1]) == (7, f"  {line}")
        shell(line.rpartition(": ")[2])


def test_a_node_of_another_device_is_refused_and_that_device_is_left_alone() -> None:
    with nbdkit("memory", "1M") as server, attached(server.uri, "nbd0"), attached(server.uri, "nbd1", tag="other"):
        number = os.stat("/dev/nbd1").st_rdev
        shell(f"mv /dev/nbd0 /dev/kept && mknod /dev/nbd0 b {os.major(number)} {os.minor(number)}")
        try:
            done = nbd("disconnect", "nbd0")
        finally:
            shell("mv /dev/kept /dev/nbd0")
        assert (done.code, FIRST.attached, Kernel(Device(1)).attached) == (6, True, True)
        wrong = f"{os.major(number)}:{os.minor(number)}, not 43:0"
        assert done.err.splitlines() == [
            f"nbdattach: /dev/nbd0: its node belongs to another device: {wrong}",
            "(rm /dev/nbd0; udevadm trigger or mknod makes it again)",
        ]


def test_a_mount_is_found_though_its_namespace_begins_with_a_chrooted_process(tmp_path: Path) -> None:
    """A process in a chroot sees no mounts outside it."""
    shutil.copy("/bin/busybox", tmp_path)
    with attached_image(tmp_path, False):
        shell("mkfs.ext4 -q /dev/nbd0")
        inside = "mount --make-rprivate / && mount /dev/nbd0 /mnt && { sleep 600 & touch /run/elsewhere; }"
        program = f"{inside} && exec chroot {tmp_path} /busybox sleep 600"
        subprocess.Popen(["unshare", "-m", "sh", "-c", program])
        eventually(lambda: Path("/run/elsewhere").exists() and runs("busybox"))
        (found,) = nbd("status", "--json").json()
        assert found["mounts"] == ["/mnt"]
        done = nbd("disconnect", "nbd0")
        assert (done.code, "mounted at /mnt in the mount namespace of process" in done.err) == (7, True), done
        shell("pkill sleep; pkill busybox")
        eventually(lambda: nbd("disconnect", "nbd0").code == 0)


def test_who_opens_it_during_a_long_flush_is_a_user() -> None:
    with _flusher("[ -e /run/quick ] || sleep 3") as server:
        connect(server.uri, "nbd0")  # type: ignore[attr-defined]
        fill_with_noise("/dev/nbd0", 1)
        detaching = subprocess.Popen(command("disconnect", "nbd0"), stderr=subprocess.PIPE, text=True)
        eventually(lambda: runs("nbdattach-flush"))
        line = opened(os.O_RDWR)()
        assert line in detaching.communicate(timeout=60)[1]
        assert (detaching.returncode, FIRST.attached) == (7, True)
        shell(line.rpartition(": ")[2] + "; touch /run/quick")
        eventually(lambda: nbd("disconnect", "nbd0").code == 0)
        os.unlink("/run/quick")


def test_what_is_written_during_a_long_flush_is_on_the_server(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "image", MIB)
    write = f"dd of={image} oflag=seek_bytes seek=$4 conv=notrunc status=none"
    answers = ["get_size=echo 1M", "pread=head -c $3 /dev/zero", f"pwrite={write}", "can_write=exit 0"]
    with nbdkit("eval", *answers, "can_flush=exit 0", "flush=sleep 2") as server:
        connect(server.uri, "nbd0")
        fill_with_noise("/dev/nbd0", 1)
        detaching = subprocess.Popen(command("disconnect", "nbd0"))
        eventually(lambda: runs("nbdattach-flush"))
        written = fill_with_noise("/dev/nbd0", 1)
        assert detaching.wait(60) == 0
        assert digest_of(image) == written


def test_what_was_found_by_its_tag_is_left_alone_once_something_else_is_there() -> None:
    """By netlink both attachments have the pid of the same program."""
    with nbdkit("memory", "1M") as first, nbdkit("memory", "2M") as second:
        old = connect(first.uri, "nbd0", tag="mine")
        (found,) = nbdattach.find(tag="mine")
        nbd_ok("disconnect", "nbd0")
        for tag in ("mine", "other"):
            with attached(second.uri, "nbd0", tag=tag):
                for handle in (old, found):
                    assert handle.disconnect() == f"holds another attachment now ('{tag}')"
                assert FIRST.size == 2 * MIB


def test_force_tears_down_and_says_what(tmp_path: Path) -> None:
    with attached_image(tmp_path, False):
        mounted("/dev/nbd0")
        done = nbd("disconnect", "--force", "nbd0")
        assert done.code == 7
        assert done.err.splitlines() == [
            "nbdattach: /dev/nbd0: detached although in use: mounted at /mnt",
            "nbdattach:   mounted at /mnt: umount /mnt",
            "nbdattach: /dev/nbd0: detached, but not free: mounted at /mnt",
            "  mounted at /mnt: umount /mnt",
            "(the kernel frees it when its last user releases it)",
        ]
        (one,) = status.all_attached()
        assert (one.state, one.target, one.mounts) == ("lost", None, ["/mnt"])
        assert one.trouble and one.trouble["error"] == "detached; the kernel frees it when its last user releases it"
        shell("umount /mnt")
        eventually(lambda: not FIRST.attached)
        nbd_ok("disconnect", "nbd0")
        assert not FIRST.size


def test_force_on_a_server_that_reads_nothing_any_more() -> None:
    with nbdkit("memory", "64M") as server:
        connect(server.uri, "nbd0")
        server.pause()
        writer = subprocess.Popen(
            "dd if=/dev/zero of=/dev/nbd0 bs=1M count=48 conv=fsync", shell=True, stderr=subprocess.DEVNULL
        )
        try:
            eventually(lambda: FIRST.inflight)
            time.sleep(1)  # the rest of the request does not fit into the socket: the driver is stuck in sending
            done = nbd("disconnect", "--force", "nbd0")
            assert (
                "flushing to the server: Connection timed out (ETIMEDOUT): data that is not on the server is lost"
                in done.err
            ), done
            assert writer.wait(60) != 0
        finally:
            server.resume()
        assert done.code == 0, done
        assert not FIRST.attached and not FIRST.size


def hold_up() -> None:
    """A program looks for partitions, which waits for the silent server, and blocks others that open nbd0."""
    again = ["blockdev", "--rereadpt", "/dev/nbd0"]
    looking = subprocess.Popen(again)

    def waits() -> bool:
        nonlocal looking
        if looking.poll() is not None:
            print("it has ended:", looking.returncode)
            looking = subprocess.Popen(again)
        return bool(FIRST.inflight) and process_state(looking.pid) == "D"

    eventually(waits)


@pytest.mark.spoils
@pytest.mark.parametrize("options", ["", BY_IOCTL])
def test_what_cannot_be_opened_for_its_silent_server_is_refused_and_force_cuts_it(options: str) -> None:
    """The kernel looks for partitions at the first open, waits for the server, and cannot be interrupted in it."""
    with nbdkit("memory", "1M") as server:
        shell(f"nbd-client {options} 127.0.0.1 {server.place[1]} /dev/nbd0 >/dev/null 2>&1")
        eventually(lambda: FIRST.attached and FIRST.size)
        server.pause()
        try:
            hold_up()
            done = nbd("disconnect", "nbd0")
            assert (done.code, FIRST.attached) == (6, True), done
            assert done.err.splitlines() == [
                "nbdattach: /dev/nbd0: its server does not answer: the device cannot be opened within 10 s",
                "(is the server up? --force cuts its connections)",
            ]
            done = nbd("disconnect", "--force", "nbd0")
            assert done.code == 0, done
        finally:
            server.resume()
        assert not FIRST.attached and not FIRST.size


def test_if_tag_detaches_only_that_attachment() -> None:
    with nbdkit("memory", "1M") as server, attached(server.uri, "nbd0", tag="mine"):
        done = nbd("disconnect", "--if-tag", "other", "nbd0")
        assert (done.code, FIRST.attached) == (0, True)
        assert done.err == "nbdattach: /dev/nbd0: holds another attachment now ('mine'), nothing to do\n"
        nbd_ok("disconnect", "--if-tag", "mine", "nbd0")
        assert not FIRST.attached


def test_all_by_tag_and_by_target() -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(nbdkit("memory", "1M")) for _ in range(4)]
        for number, server in enumerate(servers):
            connect(server.uri, f"nbd{number}", tag=f"tag{number}")
        nbd_ok("disconnect", "--tag", "tag2")
        assert [one.index for one in status.all_attached()] == [0, 1, 3]
        nbd_ok("disconnect", servers[1].uri)
        assert [one.index for one in status.all_attached()] == [0, 3]
        nbd_ok("disconnect", "--all")
        assert status.all_attached() == []


def test_64_mib_through_the_page_cache_and_disconnect_at_once(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"")
    os.truncate(image, 64 * MIB)
    with nbdkit("--filter=delay", "file", f"file={image}", "wdelay=2ms") as server:
        connect(server.uri, "nbd0")
        written = fill_with_noise("/dev/nbd0", 64)
        nbd_ok("disconnect", "nbd0")
        assert digest_of(image) == written


def _flusher(answer: str) -> AbstractContextManager[object]:
    answers = ["get_size=echo 1M", "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null", "can_write=exit 0"]
    return nbdkit("eval", *answers, "can_flush=exit 0", f"flush={answer}")


def test_a_server_that_fails_flushes_keeps_the_device() -> None:
    with _flusher("[ -e /run/good ] || { echo EIO no >&2; exit 1; }") as server:
        connect(server.uri, "nbd0")  # type: ignore[attr-defined]
        fill_with_noise("/dev/nbd0", 1)
        done = nbd("disconnect", "nbd0")
        assert (done.code, FIRST.attached) == (6, True)
        assert done.err.splitlines()[0] == "nbdattach: /dev/nbd0: flushing to the server: Input/output error (EIO)"
        again = nbd("disconnect", "nbd0")
        assert (again.code, FIRST.attached) == (6, True)
        assert again.err.splitlines() == [
            "nbdattach: /dev/nbd0: an earlier flush failed and lost data; the kernel reports that only once",
            "(--force detaches it anyway)",
        ]
        nbd_ok("disconnect", "--force", "nbd0")
        assert not FIRST.attached
        connect(server.uri, "nbd0")  # type: ignore[attr-defined]
        shell("touch /run/good")
        nbd_ok("disconnect", "nbd0")  # no record of the earlier one is left


def _breaking(broken: Path) -> AbstractContextManager[object]:
    """A server that refuses writes as long as that file exists."""
    return nbdkit("--filter=error", "memory", "1M", "error-pwrite-rate=100%", f"error-file={broken}")


def test_what_cannot_be_written_after_a_flush_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports it once, to the first caller; a flush after that is a success."""
    broken, look, looks = tmp_path / "broken", claim.refuse_users_without_claim, iter(range(9))

    def look_and_write(node: Node, *say: Callable[[str], None]) -> None:
        look(node, *say)
        if next(looks) == 1:  # the first one is before the flush
            broken.touch()
            shell("dd if=/dev/zero of=/dev/nbd0 bs=4096 count=1 status=none")

    monkeypatch.setattr(claim, "refuse_users_without_claim", look_and_write)
    with _breaking(broken) as server:
        connect(server.uri, "nbd0")  # type: ignore[attr-defined]
        with pytest.raises(nbdattach.KernelRefused, match="writing to the server: Input/output error"):
            nbdattach.disconnect("nbd0")
        assert FIRST.attached
        broken.unlink()
        assert nbd("disconnect", "nbd0").code == 6
        nbd_ok("disconnect", "--force", "nbd0")


def test_what_is_written_while_the_monitor_lets_go_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, hands_off, written = sparse_file(tmp_path / "image", MIB), control.hands_off, []

    @contextlib.contextmanager
    def slowly(device: Device, insist: bool = True) -> Iterator[None]:
        with hands_off(device, insist):
            written.append(fill_with_noise("/dev/nbd0", 1))
            yield

    with nbdkit("file", f"file={image}") as server:
        connect(server.uri, "nbd0")
        monkeypatch.setattr(control, "hands_off", slowly)
        with pytest.raises(nbdattach.DeviceInUse, match="a program keeps writing to it"):
            nbdattach.disconnect("nbd0")
        assert FIRST.attached
        nbd_ok("disconnect", "nbd0")
        assert digest_of(image) == written.pop()


def test_a_flush_that_fails_after_its_command_was_killed_is_not_forgotten(tmp_path: Path) -> None:
    good = tmp_path / "good"
    with _flusher(f"[ -e {good} ] || {{ sleep 2; echo EIO no >&2; exit 1; }}") as server:
        connect(server.uri, "nbd0")  # type: ignore[attr-defined]
        fill_with_noise("/dev/nbd0", 1)
        detaching = subprocess.Popen(command("disconnect", "nbd0"))
        eventually(lambda: runs("nbdattach-flush"))
        detaching.kill()
        detaching.wait()
        eventually(lambda: not runs("nbdattach-flush"))
        good.touch()
        done = nbd("disconnect", "nbd0")
        assert (done.code, FIRST.attached) == (6, True), done
        nbd_ok("disconnect", "--force", "nbd0")


def test_what_force_cuts_because_it_cannot_be_opened_leaves_nothing() -> None:
    with nbdkit("memory", "1M") as server:
        connect(server.uri, "nbd0")
        server.pause()
        try:
            hold_up()
            done = nbd("disconnect", "--force", "nbd0")
        finally:
            server.resume()
        assert (done.code, "cutting its connections" in done.err, "nothing to do" in done.err) == (0, True, False), done
        assert not FIRST.attached and not FIRST.size and not state.remembers(FIRST.device)


def test_a_long_flush_shows_itself_on_a_terminal_only() -> None:
    with _flusher("sleep 2") as server:
        for terminal in (True, False):
            connect(server.uri, "nbd0")  # type: ignore[attr-defined]
            fill_with_noise("/dev/nbd0", 1)
            line = f"{sys.executable} -m nbdattach disconnect nbd0"
            said = shell(f"script -qec '{line}' /dev/null" if terminal else f"{line} 2>&1")
            assert ("flushing to the server, 1 s" in said) == terminal
            assert not FIRST.attached


def test_a_signal_ends_the_wait_and_not_the_attachment() -> None:
    with _flusher("sleep 5") as server:
        connect(server.uri, "nbd0")  # type: ignore[attr-defined]
        fill_with_noise("/dev/nbd0", 1)
        process = subprocess.Popen([sys.executable, "-m", "nbdattach", "disconnect", "nbd0"], stderr=subprocess.PIPE)
        eventually(lambda: runs("nbdattach-flush"))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 1
        assert FIRST.attached
        eventually(lambda: not runs("nbdattach-flush"))
        nbd_ok("disconnect", "nbd0")
