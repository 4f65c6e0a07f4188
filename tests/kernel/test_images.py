# SPDX-License-Identifier: GPL-2.0-or-later
"""Disk images: attached in one command, with a server that lives as long as the device."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from leftovers import servers_of_images
from tool import BACKEND, command, digest_of, eventually, fill_with_noise, nbd, nbd_ok, shell

pytestmark = [pytest.mark.timeout(300), pytest.mark.any_monitor]
BLOCK = 64 << 10
# What `qemu-img create` makes and qemu-nbd can write.
FORMATS = {
    "raw": "img",
    "qcow2": "qcow2",
    "parallels": "hdd",
    "qed": "qed",
    "vdi": "vdi",
    "vmdk": "vmdk",
    "vhdx": "vhdx",
    "vpc": "vhd",
    "qcow": "qcow",
}
# The first three are written in different ways; the others as qcow2, and their tables as raw.
SAMPLED = ["qcow2", "raw", "parallels"]
EACH = [
    pytest.param("qcow2", marks=pytest.mark.essential),
    *SAMPLED[1:],
    *(pytest.param(name, marks=pytest.mark.rare) for name in FORMATS if name not in SAMPLED),
]
WITH_CHECK = ["qcow2", "parallels", "qed", "vdi", "vhdx"]


def image(folder: Path, kind: str = "qcow2", mebibytes: int = 64, name: str = "disk") -> Path:
    path = folder / f"{name}.{FORMATS[kind]}"
    shell(f"qemu-img create -q -f {kind} {path} {mebibytes}M")
    return path


def status(device: str) -> Any:
    return nbd("status", "--json", device).json()[0]


@contextmanager
def connected(path: Path, *options: str) -> Iterator[None]:
    assert nbd_ok("connect", *options, str(path), "nbd0") == "/dev/nbd0"
    yield
    nbd_ok("disconnect", str(path))
    assert not servers_of_images()


def raw_of(path: Path, kind: str) -> Path:
    """The content of the image, closed and without an error."""
    if kind in WITH_CHECK:
        shell(f"qemu-img check -q -f {kind} {path}")
    raw = path.with_name("raw")
    shell(f"qemu-img convert -f {kind} -O raw {path} {raw}")
    return raw


@pytest.mark.parametrize("kind", EACH)
def test_image_is_partitioned_written_and_right_after_disconnect(tmp_path: Path, kind: str) -> None:
    path = image(tmp_path, kind)
    with connected(path):
        shell("printf 'label: gpt\\n,\\n' | sfdisk -q /dev/nbd0")
        assert Path("/dev/nbd0p1").exists()
        shell("mkfs.ext4 -q /dev/nbd0p1")
        shell("mount /dev/nbd0p1 /mnt")
        Path("/mnt/file").write_bytes(os.urandom(5 << 20))
        digest = digest_of("/mnt/file")
        shell("umount /mnt")
    raw = raw_of(path, kind)
    shell(f"debugfs -R 'dump file {tmp_path}/file' '{raw}?offset={1 << 20}'")
    assert digest_of(tmp_path / "file") == digest


@pytest.mark.netlink
def test_an_image_is_attached_by_netlink_even_if_the_driver_is_not_loaded_yet(tmp_path: Path) -> None:
    """The cache depends on the backend, which is chosen after the driver was loaded."""
    path = image(tmp_path, "parallels")
    for option in ("--on-loss=wait", "--backend=netlink", "--backend=auto"):
        shell("modprobe -r nbd")
        with connected(path, option):
            found = status("nbd0")
            assert found["backend"] == "netlink"
            assert "--cache=writethrough" in " ".join(found["server"]["command"])


@pytest.mark.netlink
@pytest.mark.parametrize("kind", EACH)
def test_server_killed_under_writes_loses_none(tmp_path: Path, kind: str) -> None:
    """Not one that was acknowledged and not flushed, either: no program flushes here until the end."""
    path = image(tmp_path, kind)
    with connected(path):
        write_while_servers_die(4)
        assert status("nbd0")["server"]["restarts"] == 4
    raw_of(path, kind)


@pytest.mark.netlink
@pytest.mark.rare  # a minute for each; the test above has ten kills
@pytest.mark.parametrize("kind", SAMPLED)
def test_server_killed_twenty_times_under_a_verified_fio(tmp_path: Path, kind: str) -> None:
    path = image(tmp_path, kind)
    with connected(path):
        fio = subprocess.Popen(
            "fio --name=v --filename=/dev/nbd0 --direct=1 --rw=randrw --bs=4k --iodepth=8 --ioengine=libaio --size=48M"
            " --time_based --runtime=120 --rate_iops=200 --verify=crc32c --verify_fatal=1 --serialize_overlap=1",
            shell=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(20):
            eventually(lambda number=number: status("nbd0")["server"]["restarts"] == number)  # type: ignore[misc]
            eventually(lambda: status("nbd0")["state"] == "connected")
            kill_servers()
            time.sleep(4)
        output, _ = fio.communicate(timeout=240)
        assert fio.returncode == 0, output
        assert "err= 0" in output, output
    raw_of(path, kind)


def write_while_servers_die(kills: int) -> None:
    written = {}
    node = os.open("/dev/nbd0", os.O_RDWR | os.O_DIRECT)
    memory = mmap.mmap(-1, BLOCK)
    try:
        for number in range(20 * kills):
            data = os.urandom(BLOCK)
            memory[:] = data
            place = number * 37 % 900 * BLOCK
            assert os.pwrite(node, memory, place) == BLOCK
            written[place] = data
            if number % 20 == 19:
                kill_servers()
                eventually(servers_of_images)
        for place, data in written.items():
            assert os.preadv(node, [memory], place) == BLOCK
            assert memory[:] == data, place
    finally:
        os.close(node)


def kill_servers() -> None:
    for pid in servers_of_images():
        os.kill(pid, signal.SIGKILL)


@pytest.mark.netlink
def test_a_keeper_that_was_killed_is_replaced_and_the_server_goes_on(tmp_path: Path) -> None:
    path = image(tmp_path)
    with connected(path):
        (server,) = servers_of_images()
        kill_keepers()
        assert servers_of_images() == [server]
        shell("dd if=/dev/nbd0 of=/dev/null bs=1M count=1 iflag=direct status=none")
        kill_servers()  # nobody but the monitor is left to have it started again
        shell("dd if=/dev/zero of=/dev/nbd0 bs=1M count=1 oflag=direct status=none")
        assert servers_of_images() not in ([], [server])
        kill_keepers()  # and now disconnect ends the server by itself


def kill_keepers() -> None:
    shell("pkill -9 -f 'nbdattach[.]own_server[.]keeper'")
    eventually(lambda: subprocess.run(["pgrep", "-f", "nbdattach[.]own_server[.]keeper"]).returncode)


@pytest.mark.ioctl
def test_without_a_monitor_a_dead_server_ends_the_attachment_and_nothing_is_left(tmp_path: Path) -> None:
    path = image(tmp_path)
    nbd_ok("connect", str(path), "nbd0")
    kill_servers()
    eventually(lambda: nbd("status", "nbd0").code == 8)
    eventually(lambda: not servers_of_images())
    assert nbd("connect", str(path), "nbd0").code == 0
    nbd_ok("disconnect", "nbd0")


def test_the_same_image_again_is_a_success_without_a_second_server(tmp_path: Path) -> None:
    path = image(tmp_path)
    (tmp_path / "other.qcow2").hardlink_to(path)
    (tmp_path / "link.qcow2").symlink_to(path)
    with connected(path):
        before = servers_of_images()
        for name in (path, tmp_path / "link.qcow2"):
            done = nbd("connect", str(name))
            assert (done.code, done.out) == (0, "/dev/nbd0\n"), done
            assert done.err == f"nbdattach: /dev/nbd0: already attached to {path}\n"
        for name, options, cause in (
            (path, ["--tag", "other"], f"attached at /dev/nbd0 already, with the tag {path}"),
            (tmp_path / "other.qcow2", [], f"attached at /dev/nbd0 already, with the tag {path}"),
            (path, ["--snapshot"], "attached at /dev/nbd0 without --snapshot"),
        ):
            done = nbd("connect", *options, str(name))
            assert done.code == 7, done
            assert done.err == f"nbdattach: {path}: {cause}\n(nbdattach disconnect /dev/nbd0)\n"
        assert nbd("connect", str(path), "nbd1").code == 7
        assert servers_of_images() == before


def test_snapshot_leaves_the_image_as_it_was(tmp_path: Path) -> None:
    path = image(tmp_path)
    before = digest_of(path)
    with connected(path, "--snapshot"):
        digest = fill_with_noise("/dev/nbd0", 8)
        shell("sync /dev/nbd0; echo 3 >/proc/sys/vm/drop_caches")
        if BACKEND == "netlink":
            kill_servers()  # the writes are kept
        assert shell("head -c 8M /dev/nbd0 | sha256sum").split()[0] == digest
        assert list(Path("/var/tmp").glob("nbdattach-*/overlay.qcow2"))
    assert digest_of(path) == before
    assert not list(Path("/var/tmp").glob("nbdattach-*"))


def test_an_image_that_is_only_read_is_not_copied_on_overlayfs(tmp_path: Path) -> None:
    """As in a container, where the copy may fill the disk."""
    lower, upper, work, merged = (tmp_path / name for name in ("lower", "upper", "work", "merged"))
    shell(f"""modprobe overlay; mount -t tmpfs none {tmp_path} && mkdir {lower} {upper} {work} {merged} &&
        mount -t overlay -o lowerdir={lower},upperdir={upper},workdir={work} none {merged}""")
    try:
        for path in (merged / image(lower, kind).name for kind in ("raw", "qcow2")):
            nbd_ok("info", str(path))
            nbd_ok("check", str(path))
            for option in ("--read-only", "--snapshot"):
                with connected(path, option):
                    assert not list(upper.iterdir()), option
        with connected(path):
            assert list(upper.iterdir()) == [upper / path.name]
    finally:
        shell(f"umount {merged} && umount {tmp_path}")


def test_fstrim_shrinks_the_image(tmp_path: Path) -> None:
    for kind in ("qcow2", "raw"):
        path = image(tmp_path, kind)
        with connected(path):
            shell("mkfs.ext4 -q -E nodiscard /dev/nbd0; mount /dev/nbd0 /mnt")
            shell("dd if=/dev/urandom of=/mnt/file bs=1M count=24 status=none; sync")
            assert path.stat().st_blocks * 512 > 24 << 20
            shell("rm /mnt/file; sync; fstrim /mnt; umount /mnt; sync")
        assert path.stat().st_blocks * 512 < 16 << 20


def test_an_image_that_another_program_uses_is_refused(tmp_path: Path) -> None:
    for kind in ("qcow2", "raw"):
        path = image(tmp_path, kind)
        other = ["qemu-io", "-f", kind, str(path)]
        with subprocess.Popen(other, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
            assert user.stdin and user.stdout
            user.stdin.write(b"length\n")
            user.stdin.flush()
            assert user.stdout.readline()  # it has opened the image
            done = nbd("connect", str(path), "nbd0")
            user.kill()
        assert done.code == 7, done
        assert f"{path}: another program uses the image" in done.err
        with connected(path):
            locked = subprocess.run(other, input="quit\n", capture_output=True, text=True, timeout=30)
            assert "lock" in locked.stderr, (kind, locked)


def test_what_cannot_be_attached_is_one_clear_line(tmp_path: Path) -> None:
    base = image(tmp_path, name="base")
    over = tmp_path / "over.qcow2"
    shell(f"qemu-img create -q -f qcow2 -b {base} -F qcow2 {over}")
    base.rename(tmp_path / "gone.qcow2")
    named = tmp_path / "named.qcow2"
    named.write_bytes(bytes(1 << 20))
    trap = tmp_path / "trap.img"
    shell(f"qemu-img create -q -f qcow2 {trap} 1M")
    cut = image(tmp_path, name="cut")
    os.truncate(cut, 1000)
    half = tmp_path / "half.qcow2"
    shell(f"qemu-img create -q -f qcow2 {half} 64M; qemu-io -f qcow2 -c 'write 0 20M' {half}")
    os.truncate(half, half.stat().st_size // 2)
    for path, code, words in (
        (over, 4, "QEMU cannot open it: 'Could not open \\'"),
        (named, 2, "named .qcow2, but it has no qcow2 header"),
        (trap, 2, "it has the header of a qcow2 image, but not its name"),
        (cut, 4, "the image has errors: data that is in use lies behind its end"),
        (half, 4, "the image has errors: data that is in use lies behind its end"),
        (tmp_path / "no.qcow2", 2, "no such image: No such file or directory"),
    ):
        done = nbd("connect", str(path), "nbd0")
        assert (done.code, done.out) == (code, ""), (path, done)
        assert f"nbdattach: {path}: {words}" in done.err, done
        assert len(done.err.splitlines()) == 2, done


def test_a_full_disk_under_the_image_is_an_error_and_not_a_lie(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    shell(f"mount -t tmpfs -o size=8M tmpfs {small}")
    try:
        path = image(small)
        with connected(path):
            done = subprocess.run(
                "dd if=/dev/zero of=/dev/nbd0 bs=1M count=32 oflag=direct conv=fsync", shell=True, capture_output=True
            )
            assert done.returncode == 1
            assert b"No space left on device" in done.stderr or b"Input/output error" in done.stderr
    finally:
        shell(f"umount {small}")


def test_a_command_in_brackets_is_a_server(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    shell(f"truncate -s 16M {file}")
    words = ["[", "nbdkit", "--filter=delay", "file", f"file={file}", "rdelay=0", "]"]
    assert nbd_ok("connect", *words, "nbd0") == "/dev/nbd0"
    digest = fill_with_noise("/dev/nbd0", 16)
    assert status("nbd0")["tag"] == f"[ nbdkit --filter=delay file file={file} rdelay=0 ]"
    assert status("nbd0")["server"]["command"][1:] == words[2:-1]
    nbd_ok("disconnect", *words)
    assert digest_of(file) == digest
    assert not servers_of_images()


def test_part_of_a_raw_image(tmp_path: Path) -> None:
    path = image(tmp_path, "raw")
    with connected(path, "--offset", str(1 << 20), "--size", str(2 << 20)):
        assert status("nbd0")["size"] == 2 << 20
        digest = fill_with_noise("/dev/nbd0", 2)
    with path.open("rb") as file:
        assert not file.read(1 << 20).strip(b"\0")
    assert shell(f"tail -c +{(1 << 20) + 1} {path} | head -c 2M | sha256sum").split()[0] == digest


@pytest.mark.timeout(1200)
@pytest.mark.rare  # four minutes; test_crash kills both at each of their steps
def test_a_hundred_rounds_leave_nothing_behind(tmp_path: Path) -> None:
    path = image(tmp_path)
    for _ in range(100):
        nbd_ok("connect", str(path), "nbd0")
        nbd_ok("disconnect", str(path))
        assert not servers_of_images()
    assert not Path("/run/nbdattach/servers").exists()


def test_interrupted_connect_leaves_no_server(tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of the terminal's group."""
    path = image(tmp_path)
    for pause in (0.2, 0.5, 0.8, 1.1):
        process = subprocess.Popen(
            command("connect", str(path), "nbd0"),
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        if out:
            nbd_ok("disconnect", "nbd0")
        eventually(lambda: not servers_of_images(), 20)


def test_an_image_below_an_attached_one_is_not_written(tmp_path: Path) -> None:
    base, over = image(tmp_path, "raw"), tmp_path / "over.qcow2"
    shell(f"qemu-img create -q -f qcow2 -b {base} -F raw {over}")
    with connected(over):
        done = nbd("connect", str(base), "nbd1")
        assert (done.code, done.out) == (7, ""), done
        assert f"{base}: it is below {over}, which is attached at /dev/nbd0" in done.err
        nbd_ok("connect", "--read-only", str(base), "nbd1")
        nbd_ok("disconnect", "nbd1")
    with connected(base):
        done = nbd("connect", str(over), "nbd1")
        assert (done.code, done.out) == (7, ""), done


@pytest.mark.netlink
def test_neither_a_signal_nor_a_replaced_file_changes_what_a_mounted_device_has(tmp_path: Path) -> None:
    path = image(tmp_path, "raw")
    other = image(tmp_path, "raw", name="other")
    with connected(path):
        shell("mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 /mnt")
        shell("pkill -TERM -f 'nbdattach[.]own_server[.]keeper'")
        shell("echo one >/mnt/file; sync")
        path.rename(tmp_path / "moved.img")
        other.rename(path)
        kill_servers()
        eventually(lambda: "another file has the name" in str(status("nbd0").get("trouble")))
        path.rename(tmp_path / "other.img")
        (tmp_path / "moved.img").rename(path)
        shell("echo two >/mnt/file; sync; umount /mnt")


@pytest.mark.loop
def test_a_block_device_is_an_image_that_nobody_else_can_hold(tmp_path: Path) -> None:
    shell("modprobe loop")
    for kind in ("raw", "qcow2"):
        path = image(tmp_path, kind)
        if kind == "raw":
            shell(f"mkfs.ext4 -q {path}")
        loop = shell(f"losetup -f --show {path}").strip()
        options = () if kind == "raw" else ("--format", kind)
        with connected(Path(loop), *options):
            assert status("nbd0")["image"]["path"] == loop
            held = subprocess.run(["mount", loop, "/mnt"], capture_output=True, text=True)
            assert "already mounted or mount point busy" in held.stderr, (kind, held)
            done = nbd("connect", str(path), "nbd1")
            assert (done.code, done.err.splitlines()[0]) == (7, f"nbdattach: {path}: {loop} has it already")
        if kind == "raw":
            shell(f"mount {loop} /mnt")
            done = nbd("connect", loop, "nbd0")
            shell("umount /mnt")
            assert (done.code, done.out) == (7, ""), done
            assert f"Failed to get an exclusive lock of {loop}: it is mounted" in done.err, done
        shell(f"losetup -d {loop}")


@pytest.mark.netlink
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_an_image_stays_locked_while_its_server_is_dead(tmp_path: Path, kind: str) -> None:
    path = image(tmp_path, kind)
    with connected(path):
        for _ in range(5):
            kill_servers()
            other = subprocess.run(
                ["qemu-io", "-f", kind, "-c", "length", str(path)], capture_output=True, text=True, timeout=30
            )
            assert "lock" in other.stderr, other


def test_what_a_server_has_started_ends_with_it(tmp_path: Path) -> None:
    """Even in a session of its own."""
    script = tmp_path / "server"
    script.write_text("#!/bin/sh\nsetsid sleep 4711 &\nexec nbdkit --foreground memory 8M\n")
    script.chmod(0o755)
    nbd_ok("connect", "[", str(script), "]", "nbd0")
    assert shell("pgrep -f 'sleep 471[1]'")
    nbd_ok("disconnect", "nbd0")
    eventually(lambda: subprocess.run(["pgrep", "-f", "sleep 471[1]"], stdout=subprocess.DEVNULL).returncode != 0)


def test_the_folder_of_a_snapshot_is_of_root_alone_and_goes_with_it(tmp_path: Path) -> None:
    path = image(tmp_path)
    with connected(path, "--snapshot"):
        (folder,) = Path("/var/tmp").glob("nbdattach-*")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not [*Path("/var/tmp").glob("nbdattach-*")]


def test_an_image_that_is_attached_is_not_looked_at_again(tmp_path: Path) -> None:
    """What its server is just writing may look like an error."""
    path = image(tmp_path)
    with connected(path):
        content = path.read_bytes()
        os.truncate(path, 1000)  # refused, if it were not attached
        assert nbd_ok("connect", str(path), "nbd0") == "/dev/nbd0"
        with path.open("r+b") as file:
            file.write(content)
        shell("dd if=/dev/urandom of=/dev/nbd0 bs=1M count=4 conv=fsync status=none")


@pytest.mark.netlink
def test_a_new_connection_reaches_the_very_file_that_is_attached(tmp_path: Path) -> None:
    """nbdkit opens its file for each connection."""
    path = image(tmp_path, "raw")
    with connected(path):
        copy = tmp_path / "copy.img"
        copy.write_bytes(path.read_bytes())
        fill_with_noise("/dev/nbd0", 1)
        digest = digest_of("/dev/nbd0")
        kept = path.rename(tmp_path / "kept.img")
        copy.rename(path)
        done = nbd("reconnect", "nbd0")
        assert (done.code, done.out) == (4, ""), done
        assert f"{path}: another file has its name now" in done.err
        kept.rename(path)
        assert nbd("reconnect", "nbd0").err == f"nbdattach: /dev/nbd0: connected to {path}\n"
        shell("blockdev --flushbufs /dev/nbd0")
        assert digest_of("/dev/nbd0") == digest


@pytest.mark.netlink
def test_a_replaced_image_below_is_not_served(tmp_path: Path) -> None:
    base, over, other = (image(tmp_path, name=name) for name in ("base", "over", "other"))
    shell(f"qemu-img create -q -f qcow2 -b {base} -F qcow2 {over}; qemu-io -f qcow2 -c 'write -P 7 0 1M' {other}")
    with connected(over):
        kept = base.rename(tmp_path / "kept.qcow2")
        other.rename(base)
        kill_servers()
        eventually(lambda: f"another file has the name {base}" in str(status("nbd0").get("trouble")))
        kept.rename(base)
        shell("dd if=/dev/nbd0 of=/tmp/read bs=1M count=1 iflag=direct status=none")
        assert not any(Path("/tmp/read").read_bytes())


@pytest.mark.loop
def test_a_loop_device_is_known_by_its_file(tmp_path: Path) -> None:
    """Whatever name the file has by now."""
    shell("modprobe loop")
    path = image(tmp_path, "raw")
    hard = tmp_path / "hard.img"
    os.link(path, hard)
    loop = shell(f"losetup -f --show {path}").strip()
    done = nbd("connect", str(hard), "nbd0")
    assert (done.code, done.err.splitlines()[0]) == (7, f"nbdattach: {hard}: {loop} has it already")
    shell(f"losetup -d {loop}")
    with connected(hard):
        loop = shell(f"losetup -f --show {path}").strip()
        done = nbd("connect", loop, "nbd1")
        shell(f"losetup -d {loop}")
        assert (done.code, done.out) == (7, ""), done
        assert f"{loop}: it is above {hard}, which is attached at /dev/nbd0 for writing" in done.err


@pytest.mark.loop
def test_a_mounted_block_device_is_no_base_of_a_snapshot(tmp_path: Path) -> None:
    shell("modprobe loop")
    path = image(tmp_path, "raw")
    loop = shell(f"mkfs.ext4 -q {path}; losetup -f --show {path}").strip()
    shell(f"mount {loop} /mnt")
    done = nbd("connect", "--snapshot", loop, "nbd0")
    shell("umount /mnt")
    assert (done.code, done.out) == (7, ""), done
    with connected(Path(loop), "--snapshot"):
        held = subprocess.run(["mount", loop, "/mnt"], capture_output=True, text=True)
        assert "already mounted or mount point busy" in held.stderr, held
    shell(f"losetup -d {loop}")


def test_a_snapshot_is_no_danger_to_images_above_and_below(tmp_path: Path) -> None:
    base, over = image(tmp_path, name="base"), tmp_path / "over.qcow2"
    shell(f"qemu-img create -q -f qcow2 -b {base} -F qcow2 {over}")
    for first, second in ((over, base), (base, over)):
        with connected(first, "--snapshot"):
            nbd_ok("connect", "--snapshot", str(second), "nbd1")
            nbd_ok("disconnect", "nbd1")


def test_commands_with_another_export_or_folder_are_others(tmp_path: Path) -> None:
    words = ["[", "nbdkit", "-f", "file", "dir=.", "]"]
    for folder, sizes in (("one", {"a": 8, "b": 16}), ("two", {"a": 24})):
        (tmp_path / folder).mkdir()
        for name, size in sizes.items():
            (tmp_path / folder / name).touch()
            os.truncate(tmp_path / folder / name, size << 20)
    nbd_ok("connect", "-N", "a", *words, "nbd0", cwd=tmp_path / "one")
    nbd_ok("connect", "-N", "b", *words, "nbd1", cwd=tmp_path / "one")
    assert [status(name)["size"] >> 20 for name in ("nbd0", "nbd1")] == [8, 16]
    assert nbd_ok("connect", "-N", "a", *words, cwd=tmp_path / "one") == "/dev/nbd0"
    other = nbd("connect", "-N", "a", *words, cwd=tmp_path / "two")
    assert (other.code, other.out) == (7, ""), other
    assert f"its command was started in {tmp_path}/one, not in {tmp_path}/two" in other.err
    for name in ("nbd0", "nbd1"):
        nbd_ok("disconnect", name)


@pytest.mark.parametrize("how", ["vmdk", "qcow2"])
def test_an_image_of_several_files_can_be_written(tmp_path: Path, how: str) -> None:
    path = tmp_path / f"disk.{how}"
    if how == "vmdk":
        shell(f"qemu-img create -q -f vmdk -o subformat=monolithicFlat {path} 16M")
    else:
        shell(f"qemu-img create -q -f qcow2 -o data_file={tmp_path}/disk.data,data_file_raw=on {path} 16M")
    with connected(path):
        fill_with_noise("/dev/nbd0", 1)
        digest = digest_of("/dev/nbd0")
    assert digest_of(raw_of(path, how)) == digest
