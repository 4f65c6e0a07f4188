# SPDX-License-Identifier: GPL-2.0-or-later
"""disconnect --release takes apart what is built on a device; and a program that has nothing but the JSON can do it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from servers import nbdkit
from test_users import FIRST, attached_image, mapped, mapping, modules, nobody_is_left, opened  # noqa: F401 - fixtures
from tool import command, connect, eventually, nbd, nbd_ok, shell, sparse_file

pytestmark = pytest.mark.any_monitor

MIB = 1 << 20
_LVM = """export LVM_SUPPRESS_FD_WARNINGS=1; mkdir -p /etc/lvm
echo "devices { use_devicesfile=0 } activation { udev_sync=0 udev_rules=0 }" >/etc/lvm/lvmlocal.conf"""
_LUKS = "echo secret | cryptsetup"


def stack_of_volumes() -> None:
    """ext4 on a volume on LUKS on the first partition, swap on the second."""
    shell(f"""{_LVM}; set -e
        {_LUKS} luksFormat -q --type luks1 --pbkdf-force-iterations 1000 /dev/nbd0p1 -
        {_LUKS} open /dev/nbd0p1 secret -d -
        pvcreate -q /dev/mapper/secret && vgcreate -q group /dev/mapper/secret
        lvcreate -q -n volume -L 8M -Wn -Zn group && mkfs.ext4 -q /dev/mapper/group-volume
        mount /dev/mapper/group-volume /mnt && mkswap /dev/nbd0p2 && swapon /dev/nbd0p2""")


def test_a_stack_is_taken_apart_from_the_top_and_the_device_detached(tmp_path: Path) -> None:
    with attached_image(tmp_path, False):
        shell(r"printf 'label: gpt\nsize=40MiB\nsize=4MiB\n' | sfdisk -q /dev/nbd0")
        stack_of_volumes()
        uuid = shell("lvs --noheadings -o lv_uuid group/volume").strip()
        commands = ["umount /mnt", f"lvchange -an --select lv_uuid={uuid}", "cryptsetup close secret"]
        commands.append("swapoff /dev/nbd0p2")
        assert nbd_ok("disconnect", "--release", "--dry-run", "nbd0").splitlines() == commands
        assert FIRST.attached and Path("/mnt/lost+found").exists()
        (tmp_path / "link").symlink_to("/dev/nbd0")
        done = nbd("disconnect", "--release", str(tmp_path / "link"))
        assert (done.code, done.out) == (0, "")
        assert done.err.splitlines() == [f"nbdattach: /dev/nbd0: {one}" for one in commands]
        assert not FIRST.attached


def test_it_ends_no_process_and_says_who_is_left(tmp_path: Path) -> None:
    with attached_image(tmp_path, False):
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        with subprocess.Popen(["sleep", "600"], cwd="/mnt") as sleeper:
            done = nbd("disconnect", "--release", "nbd0")
            assert (done.code, FIRST.attached) == (7, True)
            assert done.err.splitlines()[1:] == [
                "nbdattach: /dev/nbd0: umount /mnt failed: 'umount: /mnt: target is busy.'",
                "  mounted at /mnt: umount /mnt",
                "(fuser -vm /mnt shows its users)",
            ]
            assert sleeper.poll() is None
            sleeper.kill()
        line = opened(0)()
        done = nbd("disconnect", "--release", "nbd0")
        assert (done.code, done.err.splitlines()[0]) == (7, "nbdattach: /dev/nbd0: umount /mnt")
        assert done.err.splitlines()[-2:] == [f"  {line}", "(release it first)"]
        shell(line.rpartition(": ")[2])
        eventually(lambda: nbd("disconnect", "nbd0").code == 0)


def test_two_groups_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """An image may have a volume group of the same name as the host's own."""
    loop = shell(f"losetup -f --show {sparse_file(tmp_path / 'host', 64 * MIB)}").strip()
    with attached_image(tmp_path, False):
        shell(f"""{_LVM}; for disk in /dev/nbd0 {loop}; do
            pvcreate -q $disk && vgcreate -q group $disk --config "devices {{ filter=[\\"a|$disk|\\",\\"r|.*|\\"] }}" &&
            lvcreate -q -an -n volume -L 8M -Wn -Zn group --config "devices {{ filter=[\\"a|$disk|\\",\\"r|.*|\\"] }}"
            done""")
        assert shell("vgs --noheadings -o vg_name").split() == ["group", "group"]
        shell("lvchange -ay --select pv_name=/dev/nbd0")
        nbd_ok("disconnect", "--release", "nbd0")
        assert not FIRST.attached


def test_mounts_inside_each_other_are_released_from_the_inside(tmp_path: Path) -> None:
    """Whichever partition has which; and a name that a shell would take apart."""
    strange = "/mnt/boot/a \n'\\b"
    with attached_image(tmp_path, False):
        shell(r"""set -e; printf 'label: gpt\nsize=8MiB\nsize=8MiB\n' | sfdisk -q /dev/nbd0
            mkfs.ext4 -q /dev/nbd0p1; mkfs.ext4 -q /dev/nbd0p2; mount /dev/nbd0p1 /mnt; mkdir /mnt/boot /mnt/bind
            mount /dev/nbd0p2 /mnt/boot; mount --bind /mnt/boot /mnt/bind""")
        Path(strange).mkdir()
        subprocess.run(["mount", "--bind", "/mnt/bind", strange], check=True)
        commands = nbd_ok("disconnect", "--release", "--dry-run", "nbd0").splitlines()
        assert commands[0] == r"umount $'/mnt/boot/a \012\'\\b'"
        assert {*commands[1:-1]} == {"umount /mnt/boot", "umount /mnt/bind"} and commands[-1] == "umount /mnt"
        done = nbd("disconnect", "--release", "nbd0")
        assert (done.code, done.err.splitlines()) == (0, [f"nbdattach: /dev/nbd0: {one}" for one in commands])
        assert not FIRST.attached


@pytest.mark.parametrize("place", ["/mnt/inner", "/mnt"])
def test_what_another_disk_has_mounted_over_it_stays(tmp_path: Path, place: str) -> None:
    """umount takes the mount that its path leads to now."""
    with attached_image(tmp_path, False):
        shell("mkfs.ext4 -q /dev/nbd0 && mount -t tmpfs under /mnt && mkdir /mnt/inner && mount /dev/nbd0 /mnt/inner")
        shell(f"mount -t tmpfs over {place} && mkdir -p /mnt/inner && touch {place}/kept")
        done = nbd("disconnect", "--release", "nbd0")
        assert (done.code, FIRST.attached, Path(f"{place}/kept").exists()) == (7, True, True), done
        way = f"what is mounted on top of it, at {place}, has to go first"
        assert done.err.splitlines() == [
            "nbdattach: /dev/nbd0: mounted at /mnt/inner: no command is known that releases it",
            f"  mounted at /mnt/inner: {way}",
            "(release it first)",
        ]
        shell(f"umount {place}")
        nbd_ok("disconnect", "--release", "nbd0")
        shell("umount /mnt")


def test_a_root_file_system_stays_writable(tmp_path: Path) -> None:
    """The kernel answers an unmount of / with success, and makes it read-only."""
    with attached_image(tmp_path, False):
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        root = """set -e; mount --make-rprivate /; cd /mnt; mkdir -p old; for one in /*; do
            [ -d "$one" ] && [ "$one" != /mnt ] && mkdir -p ".$one" && mount --rbind "$one" ".$one" || true; done
            pivot_root . old; umount /old/mnt 2>/dev/null || true; exec "$@" """
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", root, "sh", *command("disconnect", "--release", "nbd0")],
            capture_output=True,
            text=True,
        )
        assert (done.returncode, FIRST.attached) == (7, True), done
        assert "mounted at /: a root file system cannot be unmounted" in done.stderr, done
        assert "umount /\n" not in done.stderr
        shell("touch /mnt/still-writable && umount /mnt")
        nbd_ok("disconnect", "nbd0")


def test_swap_on_a_mapping_is_named_and_released(tmp_path: Path) -> None:
    """Without udev its node is no link to dm-0, and the kernel shows the name that swapon had."""
    with attached_image(tmp_path, False):
        line = mapped()
        shell("mkswap /dev/mapper/one && swapon /dev/mapper/one")
        name = mapping("one")
        done = nbd("disconnect", "nbd0")
        listed = [f"  {name} swapped on: swapoff /dev/{name}", f"  {line}"]
        assert (done.code, done.err.splitlines()[1:-1]) == (7, listed)
        nbd_ok("disconnect", "--release", "nbd0")
        assert not FIRST.attached


def test_what_is_on_files_of_its_file_system_goes_before_that(tmp_path: Path) -> None:
    """A disk image on it, with a file system that is mounted there, with a swap file on that; and a swap file."""
    other = shell(f"losetup -f --show {sparse_file(tmp_path / 'other', MIB)}").strip()
    with attached_image(tmp_path, False):
        shell("""mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt && mkdir /mnt/inner
            dd if=/dev/zero of=/mnt/image bs=1M count=8 2>/dev/null && mkfs.ext4 -q /mnt/image""")
        loop = shell("losetup -f --show /mnt/image").strip()
        shell(f"""set -e; mount {loop} /mnt/inner; for swap in /mnt/swap /mnt/inner/swap; do
            dd if=/dev/zero of=$swap bs=1M count=1 2>/dev/null; chmod 600 $swap; mkswap -q $swap; swapon $swap; done""")
        commands = ["swapoff /mnt/inner/swap", "umount /mnt/inner", f"losetup -d {loop}", "swapoff /mnt/swap"]
        assert nbd("disconnect", "nbd0").err.splitlines()[1:-1] == [
            "  swapped on /mnt/inner/swap: swapoff /mnt/inner/swap",
            "  mounted at /mnt/inner: umount /mnt/inner",
            f"  held by {loop[5:]} (a loop device): losetup -d {loop}",
            "  swapped on /mnt/swap: swapoff /mnt/swap",
            "  mounted at /mnt: umount /mnt",
        ]
        done = nbd("disconnect", "--release", "nbd0")
        assert done.err.splitlines() == [f"nbdattach: /dev/nbd0: {one}" for one in [*commands, "umount /mnt"]]
        assert not FIRST.attached
    assert shell(f"losetup -n -O BACK-FILE {other}").strip() == str(tmp_path / "other")
    shell(f"losetup -d {other}")


@pytest.mark.loop
def test_files_of_btrfs_count_though_no_mount_has_their_number() -> None:
    with nbdkit("memory", "256M") as server:
        connect(server.uri, "nbd0")
        shell("""mkfs.btrfs -q /dev/nbd0 && mount /dev/nbd0 /mnt && btrfs -q subvolume create /mnt/inner &&
            truncate -s 4M /mnt/inner/image /mnt/inner/above.img""")
        loop = shell("losetup -f --show /mnt/inner/image").strip()
        nbd_ok("connect", "/mnt/inner/above.img", "nbd1")
        *first, last = nbd_ok("disconnect", "--release", "--dry-run", "nbd0").splitlines()
        assert ({*first}, last) == ({f"losetup -d {loop}", "nbdattach disconnect /dev/nbd1"}, "umount /mnt")
        nbd_ok("disconnect", "--release", "nbd0")
        assert nbd_ok("status", "--noheadings") == ""


def test_a_dry_run_asks_the_same_questions(tmp_path: Path) -> None:
    with attached_image(tmp_path, False):
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        done = nbd("disconnect", "--release", "--dry-run", "--if-tag", "other", "nbd0", "nbd1")
        assert (done.code, done.out) == (0, "")
        first, second = done.err.splitlines()
        assert first.startswith("nbdattach: /dev/nbd0: holds another attachment now ('nbd://"), first
        assert second == "nbdattach: /dev/nbd1: not attached, nothing to do"
        shell("umount /mnt")
        nbd_ok("disconnect", "nbd0")


def wrapper(*arguments: str) -> tuple[int, Any]:
    """All that such a program knows: the exit code, and the document."""
    done = subprocess.run(command(*arguments, "--json"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.returncode, json.loads(done.stdout)


def test_a_program_needs_nothing_but_the_json(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "image", 64 * MIB)
    with nbdkit("file", f"file={image}") as server:
        code, found = wrapper("connect", server.uri, "--tag", "db")
        device = found["device"]
        assert (code, found["state"], found["size"]) == (0, "connected", 64 * MIB)
        shell(f"mkfs.ext4 -q {device} && mount {device} /mnt && swapoff -a")

        code, found = wrapper("disconnect", device)
        error = found["error"]
        assert (code, error["exit_code"], error["kind"], error["thing"]) == (7, 7, "in-use", device)
        assert error["users"] == [{"kind": "mount", "where": "/mnt", "release": ["umount", "/mnt"], "instead": None}]
        for user in error["users"]:
            subprocess.run(user["release"], check=True)

        assert wrapper("disconnect", device) == (0, [{"device": device, "detached": True, "reason": None}])
        reason = "not attached"
        assert wrapper("disconnect", device) == (0, [{"device": device, "detached": False, "reason": reason}])
        code, found = wrapper("status", device)
        assert (code, found["error"]["kind"], found["results"]) == (8, "not-attached", [])
        code, found = wrapper("connect", server.uri, "--no-such-option")
        assert (code, found["error"]["kind"]) == (2, "usage")


def test_devices_with_their_images_on_it_go_first(tmp_path: Path) -> None:
    """One image is a file on a partition, the other one a volume: umount and lvchange alone would fail."""
    with attached_image(tmp_path, False):
        shell(rf"""printf 'label: gpt\nsize=20MiB\nsize=20MiB\n' | sfdisk -q /dev/nbd0; {_LVM}
            mkfs.ext4 -q /dev/nbd0p1 && mount /dev/nbd0p1 /mnt && truncate -s 4M /mnt/above.img
            pvcreate -q /dev/nbd0p2 && vgcreate -q group /dev/nbd0p2
            lvcreate -q -n volume -L 8M -Wn -Zn group && dmsetup mknodes""")
        nbd_ok("connect", "/mnt/above.img", "nbd1")
        nbd_ok("connect", "--tag", "volume", "/dev/mapper/group-volume", "nbd2")
        shell("mkfs.ext4 -q /dev/nbd1 && mkdir /tmp/above && mount /dev/nbd1 /tmp/above && touch /tmp/above/file")
        done = nbd("disconnect", "nbd0")
        assert (done.code, FIRST.attached) == (7, True)
        commands = nbd_ok("disconnect", "--release", "--dry-run", "nbd0").splitlines()
        assert commands[:2] == ["umount /tmp/above", "nbdattach disconnect /dev/nbd1"]
        assert commands.index("nbdattach disconnect /dev/nbd1") < commands.index("umount /mnt")
        assert commands.index("nbdattach disconnect /dev/nbd2") < next(
            number for number, one in enumerate(commands) if one.startswith("lvchange")
        )
        done = nbd("disconnect", "--release", "--all")
        assert done.code == 0, done
        assert nbd_ok("status", "--noheadings") == ""
