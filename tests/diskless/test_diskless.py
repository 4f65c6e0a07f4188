# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine with its root file system on NBD: it boots, survives restarts of the server, and powers off clean."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import RELEASE, Lab
from machine import Machine

# From the server's start to the next block written: the monitor tries every 5 s at most, the machine is slow.
RECOVERY = 60.0
WRITTEN = "/var/tmp/written"
PROGRESS = "/run/progress"
BLOCK = 16384


def restarted(lab: Lab, machine: Machine, away: float) -> None:
    """The server is gone for so long, with a writer at work, and nothing of the root in the machine's memory."""
    before = blocks_written(machine)
    lab.server.kill()
    # Only the shell itself, which may hang in it: it is on the root, too.
    forgotten = machine.ask("echo 3 >/proc/sys/vm/drop_caches")
    time.sleep(away)
    lab.server.start()
    began = time.monotonic()
    machine.answer(forgotten, RECOVERY)
    while blocks_written(machine) < before + 10:
        assert time.monotonic() - began < RECOVERY


def blocks_written(machine: Machine) -> int:
    return int(machine.do(f"cat {PROGRESS} || echo 0") or 0)


def start_writer(machine: Machine) -> None:
    machine.do(f"setsid writer {WRITTEN} {PROGRESS} >/dev/null 2>&1 & until [ -s {PROGRESS} ]; do sleep 0.2; done")


def stop_writer(machine: Machine) -> int:
    machine.do("pkill -TERM -f bin/writer; while pgrep -f bin/writer; do sleep 0.2; done")
    return blocks_written(machine)


def see_root_is_attached(machine: Machine, tls: bool = False) -> None:
    assert machine.do("findmnt -n -o SOURCE /") == "/dev/nbd0"
    (status,) = json.loads(machine.do("nbdattach status --json /dev/nbd0"))
    assert (status["state"], status["backend"], status["mounts"]) == ("connected", "netlink", ["/"])
    assert (status["tls"] or {}).get("transport") == ("kernel" if tls else None)
    assert "dynamic" not in machine.do("ip addr show scope global"), "the root is lost with the address"


def see_it_is_looked_at(machine: Machine) -> None:
    """What is on the disk is remembered anew."""
    machine.do("touch /run/now; until [ /run/nbdattach/nbd0.json.content -nt /run/now ]; do sleep 0.2; done")


def see_only_the_monitor_runs(machine: Machine) -> None:
    monitor = machine.do("systemctl show -P MainPID nbdattach-monitor.service")
    # Its helpers come and go, so what has ended since does not count.
    ours = (
        "for p in $(pgrep -f '[p]ython.*nbdattach'); do"
        ' name=$(cat /proc/$p/comm 2>/dev/null) && [ "$name" != nbdattach-look ] && echo $p; done; true'
    )
    assert machine.do(ours) == monitor
    # All but the kernel's threads run from the root, and none from the initramfs. Its udev may, which we do not start:
    # on a busy machine it ends minutes later.
    strangers = (
        "for p in /proc/[0-9]*; do [ ! -e $p/exe ] || [ $(stat -Lc %d $p/exe) = $(stat -c %d /) ] ||"
        " case $(cat $p/comm) in systemd-udevd | *udev-worker*) ;; *) echo $p; tr '\\0' ' ' <$p/cmdline ;; esac; done"
    )
    deadline = time.monotonic() + RECOVERY
    while there := machine.do(strangers):  # a process that has just ended is one
        assert time.monotonic() < deadline, there


def upgrade_python(machine: Machine) -> None:
    """The monitor is not restarted, and goes on running from a file that was removed."""
    machine.do("python=$(readlink -f /usr/bin/python3) && cp $python $python.new && mv $python.new $python")
    said = "journalctl -u nbdattach-monitor.service | grep 'its program files were replaced'"
    machine.do(f"until {said}; do sleep 1; done")


def see_no_error(machine: Machine) -> None:
    assert machine.do("dmesg | grep -ciE 'i/o error|ext4-fs (error|warning)|hung task' || true") == "0"


def powered_off(lab: Lab, machine: Machine) -> None:
    """Clean: nothing was waited for, and the image needs no repair."""
    machine.power_off()
    machine.see_quick_stops()
    lab.server.kill()
    checked = subprocess.run(["e2fsck", "-fn", lab.image], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    features = subprocess.run(["dumpe2fs", "-h", lab.image], capture_output=True, text=True, check=True).stdout
    assert "needs_recovery" not in features
    assert "clean" in features
    assert lab.server.unflushed() == []


def written(image: Path) -> bytes:
    out = image.with_suffix(".written")
    subprocess.run(["debugfs", "-R", f"dump {WRITTEN} {out}", image], check=True, capture_output=True)
    return out.read_bytes()


# Emulated, a test takes three to five minutes: see tests/README.md.
UML, STOCK = "7.2", f"{os.environ.get('LAB_KERNEL') or '6.12'}-qemu"
RARE = pytest.mark.rare
PLAIN = "ro root=/dev/nbd0 nbdroot=nbd://disks:PORT/"


@pytest.mark.parametrize(
    ("kernel", "initramfs", "tls", "words"),
    [
        pytest.param(UML, "initrd", False, PLAIN, id="uml-plain"),
        pytest.param(UML, "dracut", True, "ro root=nbds://disks:PORT/", id="uml-dracut-tls"),
        pytest.param(STOCK, "initrd", False, PLAIN, id="plain", marks=RARE),
        pytest.param(STOCK, "initrd", True, "ro root=nbds://disks:PORT/ nbdopts=dead-peer=20", id="tls", marks=RARE),
        pytest.param(STOCK, "dracut", True, "ro root=nbds://disks:PORT/", id="dracut", marks=RARE),
    ],
)
def test_root_survives_restarts_of_its_server_and_powers_off_clean(
    lab: Lab, kernel: str, initramfs: str, tls: bool, words: str
) -> None:
    if tls:
        lab.over_tls()
    lab.server.start()
    machine = lab.boot(words.replace("PORT", str(lab.server.port)), initramfs)
    machine.wait_until_up()
    machine.do("systemctl start nbdattach-monitor.service")  # it may still be at it
    see_root_is_attached(machine, tls)
    see_only_the_monitor_runs(machine)
    start_writer(machine)
    restarted(lab, machine, away=3)
    restarted(lab, machine, away=30 if kernel == STOCK else 8)
    machine.do("systemctl restart nbdattach-monitor.service")
    see_it_is_looked_at(machine)
    restarted(lab, machine, away=3)
    see_root_is_attached(machine, tls)
    count = stop_writer(machine)
    see_no_error(machine)
    powered_off(lab, machine)
    assert written(lab.image) == b"".join(number.to_bytes(8, "big") * (BLOCK // 8) for number in range(count))


def wait_for_console(machine: Machine, words: str) -> None:
    deadline = time.monotonic() + 240
    while words not in machine.console:
        assert time.monotonic() < deadline, machine.console[-2000:]
        time.sleep(0.2)


# The network of dracut from before systemd's: sid's dracut has it no more.
LEGACY = "dracut" if RELEASE == "sid" else "dracut-legacy"


@RARE
@pytest.mark.parametrize("kernel", [STOCK])
@pytest.mark.parametrize("initramfs", ["initrd", LEGACY])
def test_server_that_comes_late_and_goes_away_while_the_machine_boots(lab: Lab, initramfs: str) -> None:
    """Before the real monitor runs, which has to be read from this very root."""
    machine = lab.boot(f"ro root=nbd:disks:{lab.server.port}::noatime", initramfs)
    wait_for_console(machine, "cannot connect: Connection refused")
    lab.server.start()
    for moment in ("EXT4-fs (nbd0): mounted filesystem", "nbdattach-monitor"):
        wait_for_console(machine, moment)
        lab.server.kill()
        time.sleep(5)
        lab.server.start()
    machine.wait_until_up()
    machine.do("systemctl start nbdattach-monitor.service")
    see_root_is_attached(machine)
    see_only_the_monitor_runs(machine)
    see_no_error(machine)
    assert "noatime" in machine.do("findmnt -n -o OPTIONS /")
    upgrade_python(machine)
    powered_off(lab, machine)


@RARE
@pytest.mark.parametrize("kernel", [STOCK])
def test_without_a_server_dracut_does_what_it_does_without_a_root(lab: Lab) -> None:
    words = "nbdopts=retry-for=15 rd.shell=0 rd.emergency=reboot"
    machine = lab.boot(f"ro root=nbd://disks:{lab.server.port}/ {words}", "dracut")
    machine.wait_until_off()
    assert "nbdattach: the root file system cannot be attached" in machine.console
    assert "reboot: Restarting system" in machine.console
