# SPDX-License-Identifier: GPL-2.0-or-later
"""The units while the machine runs: restarts that no writer notices, stops that are refused, volumes on top."""

from __future__ import annotations

from pathlib import Path

import certificates
import disks
import pytest
from guest import HOST, booting, enabled, package, root_of_guest
from servers import nbdkit
from test_boot import FSTAB, NBDTAB, PORT, make_disks, see_all_clean, see_no_trouble

# Into the file by one open descriptor, which keeps the file system busy; each line is on the disk before the next one.
WRITER = """\
exec 9>>$1/log || exit
number=0
while [ ! -e /run/enough ]; do
    number=$((number + 1))
    echo $number >&9 && sync $1/log || { echo "writer: failed in $1" >/dev/kmsg; exit 1; }
    sleep 0.1
done
echo $number >$1/lines
"""
WRITING = """
sh /etc/writer /srv & srv=$!
sh /etc/writer /mnt & mnt=$!
"""
RESTARTS = """
pgrep -f '^@.*worker import '
pgrep -f '^@.*nbdattach monitor'
systemctl restart nbdattach@nbd0
systemctl is-active nbdattach@nbd0
systemctl reload nbdattach@nbd0
until journalctl -u nbdattach-monitor -p notice -o cat --output-fields NBDATTACH_TARGET NBDATTACH_EVENT=reconnected \
    NBDATTACH_DEVICE=/dev/nbd0 NBDATTACH_TAG=nbd://10.9.0.1/one | grep nbd://10.9.0.1/one; do sleep 0.1; done
nsenter -m -t "$(systemctl show -P MainPID nbdattach-monitor)" test -w /sys/block/nbd0/bdi/uevent
systemctl restart nbdattach-monitor
systemctl is-active nbdattach-monitor
systemctl restart nbdattach@nbd1
systemctl is-active nbdattach@nbd1
"""
STOPS = """
systemctl stop nbdattach@nbd0
systemctl is-failed nbdattach@nbd0
systemctl start nbdattach@nbd0
systemctl is-active nbdattach@nbd0
systemctl stop nbdattach@nbd1
systemctl is-failed nbdattach@nbd1
"""
# The guest has the machine's rule that forbids to start or stop services.
REINSTALL = f"""
rm -f /usr/sbin/policy-rc.d
before=$(systemctl show -P MainPID nbdattach-monitor)
dpkg -i {package()}
dpkg -i {package()}
[ "$(systemctl show -P MainPID nbdattach-monitor)" != "$before" ]
systemctl is-active nbdattach@nbd0 nbdattach-monitor
"""
ENOUGH = """
touch /run/enough
wait $srv
wait $mnt
nbdattach status
"""


def test_a_writer_notices_no_restart_and_a_stop_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "disks"
    place.mkdir()
    for name in ("one", "two"):
        disks.ext4(place / name)
    files = {
        "etc/fstab": "/dev/nbd0 /srv ext4 _netdev,x-systemd.requires=nbdattach@nbd0.service 0 0\n"
        "/dev/nbd1 /mnt ext4 _netdev 0 0\n",
        "etc/nbdtab": f"nbd0 {HOST} one\nnbd1 {HOST} two backend=ioctl\n",
        "etc/writer": WRITER,
    }
    with (
        nbdkit("file", f"dir={place}", address=HOST, port=PORT),
        booting(tmp_path, WRITING + RESTARTS + REINSTALL + STOPS + ENOUGH, files) as guest,
    ):
        guest.wait()
        for name in ("one", "two"):
            disks.see_clean(place / name)
            lines = disks.content(place / name, "log").splitlines()
            assert lines == [str(number) for number in range(1, len(lines) + 1)]
            assert len(lines) == int(disks.content(place / name, "lines"))
    assert "writer: failed" not in guest.console
    assert "in use, so it stays attached: it has a new connection to nbd://10.9.0.1/one" in guest.console
    assert "/dev/nbd1: in use, so it stays attached, with its old connection: " in guest.console
    assert "/dev/nbd1: mounted at /mnt" in guest.console  # why the stop was refused
    # The unit of nbd1 has failed, so nothing stops it; its worker lives until the file system is unmounted.
    assert guest.when("EXT4-fs (nbd1): unmounting filesystem") < guest.when("block nbd1: shutting down sockets")
    see_no_trouble(guest, beside="left-over process")  # it says so of the worker, which lives on


SESSION = """
systemd-run --quiet --scope --unit session sh -euxc '
    nbdattach connect --backend ioctl -N one 10.9.0.1 nbd0
    nbdattach connect --tls-transport relay --tls-ca /etc/nbd-ca.pem --tls-hostname localhost -N two 10.9.0.1:10810 nbd1
'
mount /dev/nbd0 /srv
mount /dev/nbd1 /mnt
echo one >/srv/file
echo two >/mnt/file
systemctl --no-legend --plain list-units --type scope
"""
BUS = {
    f"etc/systemd/system/{name}": (root_of_guest() / "usr/lib/systemd/system" / name).read_text()
    for name in ("dbus.service", "dbus.socket")
}


@pytest.mark.rare  # as the others here but the first: each boot is 10 to 30 CPU seconds
def test_a_session_that_ends_takes_no_device_with_it(tmp_path: Path) -> None:
    """Attached by hand, with a worker and with a relay: they no longer belong to the session that attached them."""
    place = tmp_path / "disks"
    place.mkdir()
    for name in ("one", "two"):
        disks.ext4(place / name)
    keys = certificates.make(tmp_path / "keys")
    files = BUS | {"etc/nbd-ca.pem": (keys / "ca-cert.pem").read_text()}
    tls = ("--tls=require", f"--tls-certificates={keys}")
    with (
        nbdkit("file", f"dir={place}", address=HOST, port=PORT),
        nbdkit(*tls, "file", f"dir={place}", address=HOST, port=PORT + 1),
        booting(tmp_path, SESSION, files) as guest,
    ):
        said = guest.wait()
        for name in ("one", "two"):
            disks.see_clean(place / name)
            assert disks.content(place / name, "file") == f"{name}\n"
    assert "nbdattach-worker-" in said
    assert "nbdattach-relay-" in said
    assert "session.scope" not in said
    see_no_trouble(guest)
    # No unit detached them. Relay and monitor live on; systemd stops the worker, too, which ends its device.
    assert guest.console.count("excluded from killing") >= 2
    assert guest.when("EXT4-fs (nbd0): unmounting") < guest.when("block nbd0: shutting down sockets")


MAKE_VOLUME = """
pvcreate --quiet /dev/nbd0
vgcreate --quiet disks /dev/nbd0
lvcreate --quiet --yes --name first --size 40M disks
mkfs.ext4 -q /dev/disks/first
mount /dev/disks/first /srv
echo by hand >/srv/file
mount /dev/nbd1 /mnt
echo by hand >/mnt/file
"""
_FIRST_EXTENT = 1 << 20


@pytest.mark.rare  # as the others here but the first: each boot is 10 to 30 CPU seconds
def test_volumes_file_systems_by_uuid_and_mounts_by_hand(tmp_path: Path) -> None:
    place = tmp_path / "disks"
    place.mkdir()
    disks.empty(place / "volumes")
    disks.ext4(place / "plain")
    uuid = disks.uuid(place / "plain")
    table = {"etc/nbdtab": f"nbd0 {HOST} volumes\nnbd1 {HOST} plain\n"}
    table |= enabled("nbdattach@nbd0.service", "nbdattach@nbd1.service")
    fstab = {"etc/fstab": f"/dev/disks/first /srv ext4 _netdev 0 0\nUUID={uuid} /mnt ext4 _netdev 0 0\n"}
    look = "findmnt --noheadings /srv; findmnt --noheadings /mnt; echo at boot >>/srv/file; echo at boot >>/mnt/file"
    with nbdkit("file", f"dir={place}", address=HOST, port=PORT):
        for number, (command, files) in enumerate(((MAKE_VOLUME, table), (look, table | fstab))):
            with booting(tmp_path / str(number), command, files) as guest:
                guest.wait()
                disks.see_clean(place / "volumes", _FIRST_EXTENT)
                disks.see_clean(place / "plain")
            see_no_trouble(guest)
            assert "Stopped nbdattach@nbd0" in guest.console
            assert guest.console.count("NBD_DISCONNECT") == 2
    for name, offset in (("volumes", _FIRST_EXTENT), ("plain", 0)):
        assert disks.content(place / name, "file", offset) == "by hand\nat boot\n"


# It writes when the unit is being stopped, because a shutdown syncs at its beginning.
KEEP = """
systemd-run --quiet --unit keeper --property DefaultDependencies=no sh -c '
    exec 9<>/dev/nbd0
    touch /run/open
    until systemctl is-active nbdattach@nbd0 | grep -q deactivating; do sleep 0.1; done
    echo late >&9
    exec sleep 1000'
until [ -e /run/open ]; do sleep 0.1; done
"""


@pytest.mark.rare  # as the others here but the first: each boot is 10 to 30 CPU seconds
def test_what_stays_in_use_is_on_its_server_before_the_network_goes(tmp_path: Path) -> None:
    disks.empty(tmp_path / "kept")
    files = {"etc/nbdtab": f"nbd0 {HOST} kept on-loss=fail\n"} | enabled("nbdattach@nbd0.service")
    with (
        nbdkit("file", f"dir={tmp_path}", address=HOST, port=PORT) as server,
        booting(tmp_path, KEEP, files) as guest,
    ):
        guest.wait_for("still in use, so it stays attached")
        server.kill()
        guest.wait()
    assert (tmp_path / "kept").read_bytes()[:5] == b"late\n"
    assert guest.when("still in use, so it stays attached") < guest.when("Stopped target network.target")


REFUSED = """
cp /etc/new-nbdtab /etc/nbdtab
cp /etc/new-fstab /etc/fstab
systemctl daemon-reload
systemctl start remote-fs.target
findmnt --noheadings /srv
until findmnt --noheadings /mnt; do systemctl start mnt.mount; done
swapon --show=NAME --noheadings | grep nbd2
echo one >/srv/file
echo two >/mnt/file
for unit in nbdattach@nbd0 nbdattach@nbd1 nbdattach@nbd2; do systemctl stop $unit; systemctl is-failed $unit; done
"""


@pytest.mark.rare  # as the others here but the first: each boot is 10 to 30 CPU seconds
def test_written_on_a_running_machine_and_unmounted_before_the_network_goes_though_units_have_failed(
    tmp_path: Path,
) -> None:
    """No unit is ordered after a unit that has failed, even if it failed because a stop was refused."""
    place = make_disks(tmp_path)
    fstab = FSTAB.replace("/mnt ext4 _netdev", "/mnt ext4 nofail")
    files = {"etc/fstab": "", "etc/new-fstab": fstab, "etc/new-nbdtab": NBDTAB}
    with (
        nbdkit("file", f"dir={place}", address=HOST, port=PORT),
        booting(tmp_path, REFUSED, files) as guest,
    ):
        guest.wait()
        see_all_clean(place)
    before = ["EXT4-fs (nbd0): unmounting", "EXT4-fs (nbd1p2): unmounting", "Deactivated swap dev-nbd2.swap"]
    assert all(guest.when(one) < guest.when("Stopped target network.target") for one in before)
    see_no_trouble(guest)
