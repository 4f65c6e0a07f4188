# SPDX-License-Identifier: GPL-2.0-or-later
"""From /etc/nbdtab and /etc/fstab to mounted, and back to clean images when the machine is off."""

from __future__ import annotations

from pathlib import Path

import certificates
import disks
import pytest
from guest import HOST, Guest, booting
from servers import nbdkit

FSTAB = """\
/dev/nbd0 /srv ext4 _netdev 0 0
/dev/nbd1p2 /mnt ext4 _netdev 0 0
/dev/nbd2 none swap sw 0 0
"""
NBDTAB = f"""\
nbd0 {HOST} whole
nbd1 {HOST} parts
nbd2 {HOST} swap swap
"""
PORT = 10809
LOOK = """
findmnt --noheadings /srv
findmnt --noheadings /mnt
swapon --show=NAME --noheadings
nbdattach status
! systemctl --failed --no-legend --plain | grep .
"""
WRITE = """
echo one >/srv/file
echo two >/mnt/file
dd if=/dev/urandom of=/srv/big bs=1M count=8 status=none
"""


def make_disks(folder: Path) -> Path:
    place = folder / "disks"
    place.mkdir()
    disks.ext4(place / "whole")
    disks.ext4_in_part2(place / "parts")
    disks.swap(place / "swap")
    return place


def see_all_clean(place: Path) -> None:
    disks.see_clean(place / "whole")
    disks.see_clean(place / "parts", disks.PART2)
    assert disks.content(place / "whole", "file") == "one\n"
    assert disks.content(place / "parts", "file", disks.PART2) == "two\n"


def see_no_trouble(guest: Guest, beside: str = "") -> None:
    for trouble in {"ordering cycle", "I/O error", "EXT4-fs error", "Traceback", "timed out", "left-over process"} - {
        beside
    }:
        assert trouble not in guest.console, [line for _, line in guest.lines if trouble in line]
    guest.see_quick_stops()


def see_order(guest: Guest) -> None:
    """Unmounted, then detached; and only then the network went."""
    order = ["unmounting filesystem", "NBD_DISCONNECT", "Stopped nbdattach@nbd0", "Stopped target network.target"]
    assert sorted(order, key=guest.when) == order


@pytest.mark.rare  # all of it is in the next test, too
def test_all_of_fstab_is_there_at_boot_and_clean_after_power_off(tmp_path: Path) -> None:
    place = make_disks(tmp_path)
    with (
        nbdkit("file", f"dir={place}", address=HOST, port=PORT),
        booting(tmp_path, LOOK + WRITE, {"etc/fstab": FSTAB, "etc/nbdtab": NBDTAB}) as guest,
    ):
        said = guest.wait()
        see_all_clean(place)
    for wanted in ("/dev/nbd0 ", "/dev/nbd1p2", "/dev/nbd2", "nbd://10.9.0.1/whole  /srv"):
        assert wanted in said
    see_no_trouble(guest)
    see_order(guest)
    # No device depends on the monitor any more, so systemd ends it like any other process.
    assert "excluded from killing" not in guest.console


def test_a_server_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    """And all of fstab is mounted then, and clean after power-off. The first server of nbd1 never comes."""
    place = make_disks(tmp_path)
    nbdtab = NBDTAB.replace("parts", f"parts port=10810,also={HOST}:{PORT}")
    with booting(tmp_path, LOOK + WRITE, {"etc/fstab": FSTAB, "etc/nbdtab": nbdtab}) as guest:
        guest.wait_for("Starting nbdattach@nbd0.service")
        guest.let_run(8)
        assert "Finished nbdattach@" not in guest.console
        with nbdkit("file", f"dir={place}", address=HOST, port=PORT):
            said = guest.wait()
            see_all_clean(place)
    for wanted in ("/dev/nbd0 ", "/dev/nbd1p2", "/dev/nbd2", "nbd://10.9.0.1/whole  /srv"):
        assert wanted in said
    see_no_trouble(guest)
    see_order(guest)


NOFAIL = "/dev/nbd0 /srv ext4 _netdev,nofail 0 0\n/dev/nbd1p2 /mnt ext4 nofail 0 0\n/dev/nbd2 none swap nofail 0 0\n"
LATER = """
systemctl is-active nbdattach@nbd0 nbdattach@nbd1 srv.mount mnt.mount || :
until [ $(systemctl is-failed nbdattach@nbd0 nbdattach@nbd1 nbdattach@nbd2 | grep -c failed) = 3 ]; do sleep 1; done
while systemctl list-jobs | grep -E 'srv|mnt|nbd'; do sleep 1; done
echo no server has come >/dev/kmsg
until : 3<>/dev/tcp/10.9.0.1/10809; do sleep 0.2; done
systemctl start srv.mount mnt.mount dev-nbd2.swap
"""


@pytest.mark.rare  # tests/unit/boot/test_unit.py and test_units.py have the decisions
def test_a_server_that_never_comes_holds_up_nothing_and_a_later_start_works(tmp_path: Path) -> None:
    place = make_disks(tmp_path)
    table = NBDTAB.replace("swap swap", "swap swap,retry-for=5").replace("whole\n", "whole retry-for=5\n")
    table = table.replace("parts\n", "parts retry-for=5\n")
    files = {"etc/fstab": NOFAIL, "etc/nbdtab": table, "etc/later": LATER}
    with booting(tmp_path, f"bash -eux /etc/later{LOOK}{WRITE}", files) as guest:
        guest.wait_for("no server has come")
        with nbdkit("file", f"dir={place}", address=HOST, port=PORT):
            said = guest.wait()
            see_all_clean(place)
    assert "nbd://10.9.0.1/whole  /srv" in said
    # In the journal from the first failure on, not only at the last.
    assert "nbd://10.9.0.1/whole: cannot connect: Connection refused; trying again for 5 s" in guest.console
    # The boot did not wait for them.
    assert guest.when("Reached target multi-user.target") < guest.when("Failed to start nbdattach@nbd0.service")
    guest.see_quick_stops()


def test_each_carrier_leaves_clean_images(tmp_path: Path) -> None:
    """The worker of the ioctl backend, TLS in the kernel, and a relay, each until after the unmount."""
    place = make_disks(tmp_path)
    disks.ext4(place / "third")
    keys = certificates.make(tmp_path / "keys")
    trust = "tls-ca=/etc/nbd-ca.pem,tls-hostname=localhost"
    table = (
        f"nbd0 {HOST} whole backend=ioctl\n"
        f"nbd1 {HOST} parts port=10810,tls-transport=kernel,{trust}\n"
        f"nbd3 {HOST} third port=10810,tls-transport=relay,{trust}\n"
    )
    fstab = FSTAB.replace("/dev/nbd2 none swap sw", "/dev/nbd3 /opt ext4 _netdev")
    files = {"etc/fstab": fstab, "etc/nbdtab": table, "etc/nbd-ca.pem": (keys / "ca-cert.pem").read_text()}
    command = f"{LOOK}{WRITE}echo three >/opt/file; cat /proc/net/tls_stat; nbdattach status --json"
    tls = ("--tls=require", f"--tls-certificates={keys}")
    with (
        nbdkit("file", f"dir={place}", address=HOST, port=PORT),
        nbdkit(*tls, "file", f"dir={place}", address=HOST, port=PORT + 1),
        booting(tmp_path, command, files) as guest,
    ):
        said = guest.wait()
        see_all_clean(place)
        disks.see_clean(place / "third")
        assert disks.content(place / "third", "file") == "three\n"
    assert '"backend": "ioctl"' in said
    assert '"transport": "kernel"' in said
    assert '"transport": "relay"' in said
    see_no_trouble(guest)


def test_an_image_on_another_device_is_there_at_boot_and_clean_after_power_off(tmp_path: Path) -> None:
    """Its server outlives the unmount of what is on it, and ends before the file system that it lies on goes."""
    folder = tmp_path / "files"
    folder.mkdir()
    disks.ext4_in_part2(tmp_path / "raw")
    disks.qcow2(folder / "disk.qcow2", tmp_path / "raw")
    disks.ext4_with(tmp_path / "whole", folder)
    fstab = "/dev/nbd0 /srv ext4 _netdev 0 0\n/dev/nbd1p2 /mnt ext4 _netdev 0 0\n"
    nbdtab = f"nbd0 {HOST} whole\nnbd1 /srv/disk.qcow2 -\n"
    look = """
findmnt --noheadings /srv
findmnt --noheadings /mnt
nbdattach status --json nbd1
systemctl list-units --no-legend --plain 'nbdattach-server-*'
! systemctl --failed --no-legend --plain | grep .
pkill -9 -x qemu-nbd
echo two >/mnt/file
sync
nbdattach status --json nbd1
"""
    with (
        nbdkit("file", f"dir={tmp_path}", address=HOST, port=PORT),
        booting(tmp_path, look, {"etc/fstab": fstab, "etc/nbdtab": nbdtab}) as guest,
    ):
        said = guest.wait()
        disks.see_clean(tmp_path / "whole")
        image = disks.extracted(tmp_path / "whole", "disk.qcow2", tmp_path / "image")
        raw = disks.as_raw(image, tmp_path / "after")
        disks.see_clean(raw, disks.PART2)
        assert disks.content(raw, "file", disks.PART2) == "two\n"
    assert '"unit": "nbdattach-server-' in said
    assert '"restarts": 1' in said
    see_no_trouble(guest)
    order = ["Unmounted mnt.mount", "Stopped nbdattach@nbd1", "Unmounted srv.mount", "Stopped nbdattach@nbd0"]
    assert sorted(order, key=guest.when) == order
