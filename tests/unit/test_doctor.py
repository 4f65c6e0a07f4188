# SPDX-License-Identifier: GPL-2.0-or-later
"""The problems, one at a time, on a machine that is made of files: the finding, and its remedy."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from host import NBD0, NBD1, Host, pretend

from nbdattach import doctor
from nbdattach.attached import state, status
from nbdattach.attached.state import Record, Trouble
from nbdattach.backends import choice
from nbdattach.cli import render
from nbdattach.connection import kernel_socket
from nbdattach.doctor import Finding, examine
from nbdattach.errors import KernelRefused, NbdattachError
from nbdattach.host import lvm, procfs, selinux, spawn, systemd, udev
from nbdattach.kernel import driver
from nbdattach.monitor import control

RELEASE = "6.9.3-test"
WATCHED = Record("mine", "nbd://db1/disk", "disk", "netlink", 1, "2026-01-02T03:04:05Z", 4711, reconnect=True)
AS_IT_COMES = {
    "global_filter": '["a|.*|"]',
    "filter": '["a|.*|"]',
    "use_devicesfile": "0",
    "devicesfile": '"system.devices"',
    "event_activation": "1",
}  # the output of lvmconfig of 2.03.16
WEEK = "echo 604800000 >/sys/block/nbd0/queue/io_timeout"


class Machine(Host):
    """All is well there, with one device, nbd0, that nothing is attached to. Its programs are shell scripts."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(root)
        self.root = root
        self.patch = patch
        self.nodes = {"/dev/nbd0", "/dev/nbd1"}
        self.file("sys/module/nbd/parameters/max_part", "16\n")
        self.file("sys/module/tls/refcnt")
        self.file("run/udev/control")
        self.file("rules/60-nbdattach.rules")
        self.idle()
        self.program("modprobe", "exit 0")

    def file(self, path: str, text: str = "") -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def idle(self, name: str = "nbd0", size: int = 0) -> None:
        self.file(f"sys/block/{name}/size", f"{size // 512}\n")

    def attach(self, *arguments: object, **more: object) -> None:
        (self.sys / "block/nbd0/size").unlink()
        (self.sys / "block/nbd0").rmdir()
        super().attach(*arguments, **more)  # type: ignore[arg-type]

    def program(self, name: str, script: str) -> None:
        self.file(f"bin/{name}", f"#!/bin/sh\n{script}\n").chmod(0o755)

    def lvm(self, **settings: str) -> None:
        """LVM is installed, with its defaults except for these."""
        told = "\n".join(f"{key}={value}" for key, value in (AS_IT_COMES | settings).items())
        self.program("lvmconfig", f"/bin/cat <<'END'\n{told}\nEND")

    def says(self, subject: str) -> Finding | None:
        """The one finding on it."""
        found = [one for one in examine() if one.subject == subject]
        assert len(found) < 2
        return found[0] if found else None


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    shutil.rmtree(pretend(tmp_path, monkeypatch).sys)
    made = Machine(tmp_path, monkeypatch)
    monkeypatch.setattr(udev, "CONTROL", str(tmp_path / "run/udev/control"))
    monkeypatch.setattr(udev, "RULE_FOLDERS", (str(tmp_path / "rules"), str(tmp_path / "more")))
    monkeypatch.setattr(driver, "SYSTEM_PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(lvm, "SYSTEM_PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(lvm, "FOLDER", str(tmp_path / "etc/lvm"))
    monkeypatch.setattr(selinux, "ENFORCE", str(tmp_path / "selinux/enforce"))
    monkeypatch.setattr(selinux, "POLICIES", str(tmp_path / "etc/selinux/*/policy/policy.*"))
    monkeypatch.setattr(selinux, "KERNEL_LOG", str(tmp_path / "kmsg"))
    monkeypatch.setattr(control, "PLACE", str(tmp_path / "monitor"))
    monkeypatch.setattr(procfs, "is_root", lambda: True)
    monkeypatch.setattr(status, "has_open", lambda pid, numbers: procfs.alive(pid))
    monkeypatch.setattr(procfs, "may_administer", lambda: True)
    monkeypatch.setattr(kernel_socket, "can_make_room", lambda: True)
    monkeypatch.setattr(procfs, "sees_all", lambda: True)
    monkeypatch.setattr(status, "sees_all", lambda: True)
    monkeypatch.setattr(choice, "why_no_netlink", lambda: None)
    importlib.import_module("nbdattach.kernel.dead_links")  # which needs the true one
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(systemd, "in_charge", lambda: False)
    monkeypatch.setattr(doctor, "_is_block_device", lambda path: path in made.nodes)
    monkeypatch.setattr(
        doctor, "os", SimpleNamespace(uname=lambda: SimpleNamespace(release=RELEASE), stat=os.stat), raising=True
    )
    return made


def in_the_way(subject: str, says: str, remedy: str) -> Finding:
    return Finding(subject, says, True, remedy)


def worth_knowing(subject: str, says: str, remedy: str) -> Finding:
    return Finding(subject, says, False, remedy)


# -- without problems --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("machine")
def test_where_all_is_well_nothing_has_a_remedy() -> None:
    assert render.findings_lines(examine()).splitlines() == [
        "ok  permission: running as root",
        "ok  driver: loaded, 1 devices",
        "ok  nodes: /dev/nbd0 is a block device",
        "ok  partitions: up to 16 for each device",
        "ok  netlink: usable",
        "ok  udev: running",
        "ok  tls: the kernel supports it",
    ]


def test_before_the_driver_is_loaded_devices_are_not_looked_at(machine: Machine) -> None:
    for path in ("module/nbd/parameters/max_part", "block/nbd0/size"):
        (machine.sys / path).unlink()
    for path in ("module/nbd/parameters", "module/nbd", "block/nbd0"):
        (machine.sys / path).rmdir()
    assert render.findings_lines(examine()).splitlines() == [
        "ok  permission: running as root",
        "ok  driver: not loaded yet; connect loads it",
        "ok  netlink: pyroute2 is installed",
        "ok  udev: running",
        "ok  tls: the kernel supports it",
    ]


def test_three_marks() -> None:
    found = [Finding("a", "good"), worth_knowing("b", "odd", "mend b"), in_the_way("c", "bad", "mend c")]
    assert render.findings_lines(found) == "ok  a: good\n--  b: odd\n    mend b\n!!  c: bad\n    mend c"
    assert json.loads(render.findings_json(found))["ok"] is False
    assert json.loads(render.findings_json(found[:2]))["ok"] is True


def test_nothing_is_written(machine: Machine) -> None:
    before = sorted(machine.root.rglob("*"))
    examine()
    assert sorted(machine.root.rglob("*")) == before


# -- permission, driver, nodes, partitions -----------------------------------------------------------------------------


def test_not_root(machine: Machine) -> None:
    machine.patch.setattr(procfs, "is_root", lambda: False)
    says = "not root, so nbdattach cannot attach or detach"
    assert machine.says("permission") == in_the_way("permission", says, "sudo nbdattach ...")


def test_root_without_the_capability(machine: Machine) -> None:
    machine.patch.setattr(procfs, "may_administer", lambda: False)
    says = "root without CAP_SYS_ADMIN, so nbdattach cannot attach or detach"
    remedy = "start the container with the capability: docker run --cap-add SYS_ADMIN, or podman run --privileged"
    assert machine.says("permission") == in_the_way("permission", says, remedy)


def test_capability_is_asked_of_the_kernel() -> None:
    drop = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"] if os.geteuid() == 0 else []
    code = "from nbdattach.host import procfs; print(procfs.may_administer())"
    done = subprocess.run([*drop, sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_root_that_cannot_enlarge_buffers(machine: Machine) -> None:
    assert machine.says("buffers") is None
    machine.patch.setattr(kernel_socket, "can_make_room", lambda: False)
    says = "send buffers stay small without CAP_NET_ADMIN: see LIMITS in nbdattach(8) about programs with signals"
    remedy = "start the container with the capability: docker run --cap-add NET_ADMIN"
    assert machine.says("buffers") == worth_knowing("buffers", says, remedy)


def test_driver_that_cannot_be_loaded(machine: Machine) -> None:
    (machine.sys / "module/nbd").rename(machine.sys / "module/other")
    (machine.sys / "block/nbd0").rename(machine.sys / "block/sda")
    machine.patch.setattr(driver, "why_not", lambda words: KernelRefused("nbd driver", words.strip(), "mend it"))
    machine.program("modprobe", '[ "$*" = "--dry-run nbd" ] || exit 0; echo no such thing >&2; exit 1')
    assert machine.says("driver") == in_the_way("driver", "no such thing", "mend it")


@pytest.mark.parametrize(
    ("devices", "nodes", "says"),
    [
        (1, [], "/dev/nbd0 is not a block device, although the driver is loaded"),
        (2, [0], "/dev/nbd1 is not a block device, although the driver is loaded"),
        (3, [1], "/dev/nbd0, /dev/nbd2 are not block devices, although the driver is loaded"),
        (16, [], "/dev/nbd0, /dev/nbd1, /dev/nbd2 and 13 more are not block devices, although the driver is loaded"),
    ],
)
def test_missing_nodes_are_named(machine: Machine, devices: int, nodes: list[int], says: str) -> None:
    for number in range(devices):
        machine.idle(f"nbd{number}")
    machine.nodes = {f"/dev/nbd{number}" for number in nodes}
    remedy = "mount -t devtmpfs devtmpfs /dev, or pass the devices into this container"
    assert machine.says("nodes") == in_the_way("nodes", says, remedy)


def test_a_driver_without_devices_is_no_error(machine: Machine) -> None:
    (machine.sys / "block/nbd0").rename(machine.sys / "block/sda")
    assert machine.says("nodes") == Finding("nodes", "no devices yet; netlink makes them when they are needed")


def test_partitions_are_found_even_with_max_part_0(machine: Machine) -> None:
    machine.file("sys/module/nbd/parameters/max_part", "0\n")
    assert machine.says("partitions") == Finding("partitions", "found, although the driver was loaded with max_part=0")


# -- devices -----------------------------------------------------------------------------------------------------------


DETACH = "stop the programs that use it, then: nbdattach disconnect /dev/nbd0"


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_size_without_an_attachment_is_wedged(machine: Machine) -> None:
    machine.idle(size=1 << 20)
    assert machine.says("/dev/nbd0") == in_the_way("/dev/nbd0", "1048576 bytes, but nothing is attached", DETACH)


def test_the_pid_of_a_dead_process_is_wedged(machine: Machine) -> None:
    pid = dead_pid()
    machine.attach(pid=pid, netlink=False)
    says = f"lost: no process serves it any more (it was process {pid})"
    assert machine.says("/dev/nbd0") == in_the_way("/dev/nbd0", says, DETACH)


def test_an_attachment_whose_process_lives_is_well(machine: Machine) -> None:
    machine.attach(pid=os.getpid(), netlink=False)
    assert machine.says("/dev/nbd0") is None


def test_what_netlink_attached_needs_no_process(machine: Machine) -> None:
    machine.attach(pid=dead_pid())
    assert machine.says("/dev/nbd0") is None


@pytest.mark.parametrize("how", ["reconnecting", "lost"])
@pytest.mark.parametrize(("error", "said"), [("nbd://db1/disk: no\x1b", r"nbd://db1/disk: no\x1b"), ("", "trying")])
def test_without_a_connection_it_is_away_not_wedged(machine: Machine, how: str, error: str, said: str) -> None:
    machine.attach()
    with state.monitor_lock():
        state.save(NBD0, WATCHED)
        state.save_trouble(NBD0, Trouble(how, "2026-01-02T03:05:00Z", None, error))
        remedy = "start the server, or use another one: nbdattach reconnect /dev/nbd0 TARGET"
        says = f"{how} since 2026-01-02T03:05:00Z: {said}"
        assert machine.says("/dev/nbd0") == worth_knowing("/dev/nbd0", says, remedy)


@pytest.mark.parametrize("netlink", [True, False])
def test_what_was_detached_and_is_kept_by_a_program_needs_no_server(machine: Machine, netlink: bool) -> None:
    machine.attach(pid=os.getpid(), netlink=netlink)
    state.note_end(NBD0, state.identity_of(NBD0))
    ended = state.end_of(NBD0)
    assert ended
    assert machine.says("/dev/nbd0") == in_the_way("/dev/nbd0", f"lost since {ended.since}: {ended.error}", DETACH)


LEFT_ON = (
    "free, but another program has switched NBD_CMD_WRITE_ZEROES on; "
    "connect refuses servers that do not support it there"
)


def test_write_zeroes_that_another_program_left_switched_on_is_told_of_a_free_device(machine: Machine) -> None:
    machine.file("sys/block/nbd0/queue/write_zeroes_max_bytes", "4294966784\n")
    assert machine.says("/dev/nbd0") == worth_knowing("/dev/nbd0", LEFT_ON, "modprobe -r nbd; modprobe nbd")


def test_driver_is_not_to_be_loaded_anew_while_it_is_in_use(machine: Machine) -> None:
    """It could not be; connect without a device takes another one."""
    machine.file("sys/block/nbd1/queue/write_zeroes_max_bytes", "4294966784\n")
    machine.file("sys/block/nbd1/size", "0\n")
    machine.attach(pid=os.getpid())
    assert machine.says("/dev/nbd1") == worth_knowing("/dev/nbd1", LEFT_ON, "nbdattach connect TARGET")


def test_write_zeroes_of_an_attachment_is_its_own_business(machine: Machine) -> None:
    machine.attach(pid=os.getpid())
    machine.file("sys/block/nbd0/queue/write_zeroes_max_bytes", "4294966784\n")
    assert machine.says("/dev/nbd0") is None


def timed(machine: Machine, milliseconds: int, debugfs: str | None, connections: int = 1, netlink: bool = True) -> None:
    machine.attach(pid=os.getpid(), netlink=netlink)
    machine.file("sys/block/nbd0/queue/io_timeout", f"{milliseconds}\n")
    for number in range(connections):
        machine.file(f"sys/block/nbd0/mq/{number}/nr_tags")
    if debugfs is not None:
        machine.file("sys/kernel/debug/nbd/nbd0/timeout", f"{debugfs}\n")


GIVES_UP = "attached by another program, and gives up a server that needs {} s for an answer"


@pytest.mark.parametrize("netlink", [True, False])
@pytest.mark.parametrize(
    ("milliseconds", "debugfs", "connections", "says"),
    [
        (5000, "1250", 1, GIVES_UP.format(5)),  # jiffies, of 4 ms here
        (30000, "7500", 1, GIVES_UP.format(30)),
        (30000, "0", 2, GIVES_UP.format(30)),
        (2500, None, 2, GIVES_UP.format(2.5)),
        (
            5000, None, 1,
            f"{GIVES_UP.format(5)}; or an earlier attachment left this timeout: only debugfs can show which",
        ),
    ],
)  # fmt: skip
def test_a_time_out_of_another_program_is_told(
    machine: Machine, milliseconds: int, debugfs: str | None, connections: int, says: str, netlink: bool
) -> None:
    timed(machine, milliseconds, debugfs, connections, netlink)
    assert machine.says("/dev/nbd0") == worth_knowing("/dev/nbd0", says, WEEK)


@pytest.mark.parametrize(
    ("milliseconds", "debugfs", "connections"),
    [
        (30000, "0", 1),  # no program has set one
        (30000, None, 1),
        (5000, "0", 1),  # of an attachment that is gone
        (604_800_000, "1250", 1),  # as the remedy says
        (604_800_000, None, 2),
    ],
)
def test_who_waits_on_is_no_finding(machine: Machine, milliseconds: int, debugfs: str | None, connections: int) -> None:
    timed(machine, milliseconds, debugfs, connections)
    assert machine.says("/dev/nbd0") is None


def test_time_outs_of_our_own_are_what_was_asked_for(machine: Machine) -> None:
    timed(machine, 5000, "1250")
    state.save(NBD0, replace(WATCHED, kernel_pid=os.getpid(), reconnect=False))
    assert machine.says("/dev/nbd0") is None


def test_time_out_of_what_was_detached_is_that_of_no_other_program(machine: Machine) -> None:
    """A program keeps the device. The note of its end is read once."""
    timed(machine, 5000, "1250")
    state.note_end(NBD0, state.identity_of(NBD0))
    ended = state.end_of(NBD0)
    machine.patch.setattr(status, "end_of", lambda _: ended)
    machine.patch.setattr(state, "end_of", lambda _: pytest.fail("read again"))
    found = machine.says("/dev/nbd0")
    assert found and found.remedy == DETACH


def test_without_root_nobody_can_tell_whose_time_out_it_is(machine: Machine) -> None:
    timed(machine, 5000, None)
    machine.patch.setattr(procfs, "is_root", lambda: False)
    assert machine.says("/dev/nbd0") is None


# -- netlink and the monitor -------------------------------------------------------------------------------------------


def test_missing_pyroute2(machine: Machine) -> None:
    machine.patch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyroute2" else object())
    says = "pyroute2 is not installed, so a lost connection is not made again"
    assert machine.says("netlink") == worth_knowing("netlink", says, choice.how_to_install())


def test_an_interpreter_without_pyroute2_says_so() -> None:
    """As a user has it: the import itself finds nothing."""
    code = "import sys; sys.modules['pyroute2'] = None; from nbdattach.cli.main import run; run(['doctor', '--json'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    (found,) = [one for one in json.loads(done.stdout)["findings"] if one["subject"] == "netlink"]
    assert found["says"] == "pyroute2 is not installed, so a lost connection is not made again"


def test_missing_family(machine: Machine) -> None:
    missing = KernelRefused("netlink backend", "the kernel has no netlink family nbd here", "--backend ioctl")
    machine.patch.setattr(choice, "why_no_netlink", lambda: missing)
    says = "the kernel has no netlink family nbd here, so a lost connection is not made again"
    remedy = "run nbdattach in the network namespace of the host: docker run --network host"
    assert machine.says("netlink") == worth_knowing("netlink", says, remedy)


def test_a_kernel_that_does_not_answer_is_not_waited_for(machine: Machine) -> None:
    machine.patch.setattr(doctor, "NETLINK_SECONDS", 0.2)
    machine.patch.setattr(choice, "why_no_netlink", lambda: time.sleep(60))
    says = "the kernel does not answer, because another netlink command hangs"
    assert machine.says("netlink") == in_the_way("netlink", says, "dmesg usually shows which; then: reboot")


def test_pyroute2_that_cannot_be_used_is_told(machine: Machine) -> None:
    """Such as one that is too old: the import fails, with any error."""
    machine.patch.setattr(choice, "why_no_netlink", lambda: 1 // 0)
    remedy = choice.how_to_install()
    says = "pyroute2 fails, so a lost connection is not made again"
    assert machine.says("netlink") == worth_knowing("netlink", says, remedy)


@contextlib.contextmanager
def monitor(answer: Callable[[control.Caller], object]) -> Iterator[None]:
    """A monitor that does this with each request."""
    door = control.Door()

    def serve() -> None:
        caller = door.accept()
        caller.read()
        answer(caller)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    thread.join(60)
    door.close()


@pytest.mark.parametrize(
    ("systemd_there", "installed", "remedy"),
    [
        (True, True, "systemctl start nbdattach-monitor"),
        (True, False, "nbdattach monitor -b"),
        (False, True, "nbdattach monitor -b"),
    ],
)
def test_no_monitor_for_what_relies_on_it(machine: Machine, systemd_there: bool, installed: bool, remedy: str) -> None:
    machine.patch.setattr(systemd, "in_charge", lambda: systemd_there)
    machine.patch.setattr(systemd, "installed", lambda unit: installed and unit == "nbdattach-monitor.service")
    machine.attach()
    state.save(NBD0, WATCHED)
    says = "not running (No such file or directory), so /dev/nbd0 will not be reconnected"
    assert machine.says("monitor") == in_the_way("monitor", says, remedy)


@pytest.mark.parametrize(
    ("installed", "remedy"),
    [
        (True, "systemctl restart nbdattach-monitor"),
        (False, f"kill -9 {os.getpid()}; nbdattach monitor -b"),
    ],
)
def test_a_monitor_that_hangs_is_not_waited_for(machine: Machine, installed: bool, remedy: str) -> None:
    machine.patch.setattr(systemd, "in_charge", lambda: True)
    machine.patch.setattr(systemd, "installed", lambda unit: installed)
    machine.patch.setattr(doctor, "MONITOR_SECONDS", 0.2)
    machine.attach()
    state.save(NBD0, WATCHED)
    with monitor(lambda caller: caller.wait_until_gone()):
        says = "does not answer (timed out), so /dev/nbd0 will not be reconnected"
        assert machine.says("monitor") == in_the_way("monitor", says, remedy)


def test_a_monitor_that_answers_is_well(machine: Machine) -> None:
    machine.attach()
    state.save(NBD0, WATCHED)
    with monitor(lambda caller: caller.reply(spawn.own_package())):
        assert machine.says("monitor") == Finding("monitor", "running")


def test_a_monitor_of_an_older_release_does_not_tell_its_code(machine: Machine) -> None:
    machine.attach()
    state.save(NBD0, WATCHED)
    with monitor(lambda caller: caller.reply(NbdattachError("monitor", "it does not know this request", "is it?"))):
        assert machine.says("monitor") == Finding("monitor", "running")


def test_a_monitor_of_another_nbdattach_is_told_with_its_place(machine: Machine) -> None:
    """connect takes any monitor that runs."""
    machine.attach()
    state.save(NBD0, WATCHED)
    pid = os.getpid()
    with monitor(lambda caller: caller.reply("/srv/checkout/nbdattach")):
        remedy = f"kill {pid}; tail --pid={pid} -f /dev/null; nbdattach monitor -b"
        says = "running, but from another nbdattach: /srv/checkout/nbdattach"
        assert machine.says("monitor") == worth_knowing("monitor", says, remedy)


@pytest.mark.parametrize("record", [replace(WATCHED, reconnect=False), replace(WATCHED, kernel_pid=1), None])
def test_nobody_else_needs_a_monitor(machine: Machine, record: Record | None) -> None:
    machine.attach()
    if record:
        state.save(NBD0, record)
    assert machine.says("monitor") is None


def test_by_ioctl_nobody_needs_a_monitor(machine: Machine) -> None:
    machine.attach(pid=os.getpid(), netlink=False)
    state.save(NBD0, replace(WATCHED, backend="ioctl", kernel_pid=os.getpid()))
    assert machine.says("monitor") is None


# -- udev --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("systemd_there", "remedy"), [(True, "systemctl start systemd-udevd"), (False, "")])
def test_no_udev(machine: Machine, systemd_there: bool, remedy: str) -> None:
    machine.patch.setattr(systemd, "in_charge", lambda: systemd_there)
    (machine.root / "run/udev/control").unlink()
    (machine.root / "rules/60-nbdattach.rules").unlink()
    says = "not running: devices work, but get no links in /dev/disk"
    assert machine.says("udev") == worth_knowing("udev", says, remedy)
    assert machine.says("udev rules") is None


def test_rules_that_are_not_installed(machine: Machine) -> None:
    (machine.root / "rules/60-nbdattach.rules").unlink()
    remedy = (
        "in a checkout: install -D -m 644 systemd/60-nbdattach.rules -t /usr/lib/udev/rules.d; "
        "install -D -m 755 systemd/nbdattach-tag -t /usr/lib/udev; udevadm control --reload"
    )
    says = "60-nbdattach.rules is not installed, so devices get no names in /dev/disk/by-nbd"
    assert machine.says("udev rules") == worth_knowing("udev rules", says, remedy)


def test_rules_of_a_package_are_good_too(machine: Machine) -> None:
    (machine.root / "rules").rename(machine.root / "more")
    assert machine.says("udev rules") is None


# -- LVM ---------------------------------------------------------------------------------------------------------------


ACTIVATES = (
    "activates the volumes in attached images, which keeps their devices in use; with the remedy LVM ignores "
    "nbd devices, so that vgchange cannot activate volumes on them either"
)


def test_lvm_as_it_comes_activates_volumes_of_images(machine: Machine) -> None:
    machine.lvm()
    remedy = f"echo 'devices {{ global_filter = [ \"r|^/dev/nbd|\" ] }}' >>{machine.root}/etc/lvm/lvmlocal.conf"
    assert machine.says("lvm") == worth_knowing("lvm", ACTIVATES, remedy)


@pytest.mark.parametrize(
    ("there", "line"),
    [
        ('["r|/dev/cdrom|"]', '"r|^/dev/nbd|", "r|/dev/cdrom|"'),
        # udev's other names of the partition are accepted by the last one.
        ('["r|/dev/nbd|","a|.*|"]', '"r|^/dev/nbd|"'),
        ('["a/nbd/","a|^/dev/sd|","r|.*|"]', '"r|^/dev/nbd|", "a|^/dev/sd|"'),
    ],
)
def test_a_filter_that_lets_them_in_is_mended(machine: Machine, there: str, line: str) -> None:
    machine.lvm(global_filter=there)
    remedy = f"in {machine.root}/etc/lvm/lvm.conf, section devices: global_filter = [ {line} ]"
    assert machine.says("lvm") == worth_knowing("lvm", ACTIVATES, remedy)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"global_filter": '"r|^/dev/nbd|"'},
            "its global_filter rejects nbd devices, so no volume on them can be used",
        ),
        (
            {"global_filter": '["a|^/dev/sd[a-z]|","r|.*|"]'},
            "its global_filter rejects nbd devices, so no volume on them can be used",
        ),
        ({"filter": '["r/nbd/"]'}, "its filter rejects nbd devices, so no volume on them can be used"),
        ({"event_activation": "0"}, "its event_activation is off"),
        ({"auto_activation_volume_list": "[]"}, "activates automatically only: nothing"),
        ({"auto_activation_volume_list": '["vg1","@\\"x"]'}, 'activates automatically only: vg1, @"x'),
    ],
)
def test_lvm_that_keeps_away_is_well(machine: Machine, settings: dict[str, str], says: str) -> None:
    machine.lvm(**settings)
    assert machine.says("lvm") == Finding("lvm", says)


@pytest.mark.parametrize(("use", "there", "well"), [("1", True, True), ("1", False, False), ("0", True, False)])
def test_a_devices_file_counts_where_it_is_used_and_there(machine: Machine, use: str, there: bool, well: bool) -> None:
    machine.lvm(use_devicesfile=use)
    if there:
        machine.file("etc/lvm/devices/system.devices")
    found = machine.says("lvm")
    assert found and bool(found.remedy) is not well
    if well:
        assert found.says == f"uses only the devices in {machine.root}/etc/lvm/devices/system.devices"


def test_without_udev_nothing_is_activated_by_itself(machine: Machine) -> None:
    machine.lvm()
    (machine.root / "run/udev/control").unlink()
    assert machine.says("lvm") == Finding("lvm", "activates nothing automatically, because udev is not running")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo '  Parse error at byte 7' >&2; echo '  Failed' >&2; exit 4", "Parse error at byte 7 Failed"),
        ("exit 5", "lvmconfig ended with 5"),
        ("exec /bin/sleep 60", "lvmconfig took more than 0.2 s"),
    ],
)
def test_lvm_that_does_not_tell(machine: Machine, script: str, why: str) -> None:
    machine.patch.setattr(lvm, "SECONDS", 0.2 if "sleep" in script else 10)
    machine.program("lvmconfig", script)
    says = f"cannot find out if it activates volumes of images: {why}"
    assert machine.says("lvm") == worth_knowing("lvm", says, "lvmconfig --validate")


# -- SELinux -----------------------------------------------------------------------------------------------------------


ALLOW = "ausearch -m avc -ts boot | grep -E '(tcp|unix_stream)_socket' | audit2allow -M nbd-socket"
MEND = f"a kernel of 6.12.56, 6.17.6 or 6.18; until then: {ALLOW} && semodule -i nbd-socket.pp"


def kernel_log(machine: Machine, *texts: str) -> None:
    """Records as /dev/kmsg gives them, of this moment."""
    now = int(time.monotonic() * 1e6)
    machine.file("kmsg", "".join(f"3,{number},{now},-;{text}\n" for number, text in enumerate(texts)))


def enforce(machine: Machine, release: str = "6.18.0") -> None:
    machine.file("selinux/enforce", "1")
    machine.patch.setattr(doctor.os, "uname", lambda: SimpleNamespace(release=release))


@pytest.mark.parametrize(
    "release",
    [
        "6.9.12",
        "6.6.120-1-lts",
        "5.14.0-570.el9.x86_64",
        "6.12.56",
        "6.12.117+deb12-amd64",
        "6.17.6",
        "6.18.0-rc3",
        "7.0.1",
    ],
)
def test_kernel_without_that_fault(machine: Machine, release: str) -> None:
    enforce(machine, release)
    assert machine.says("selinux") == Finding("selinux", "enforcing; it has ended no connection")


@pytest.mark.parametrize(
    "release", ["6.10.0", "6.12.55-1-lts", "6.12.0-55.el10.x86_64", "6.14.0-37-generic", "6.17.5-300.fc43.x86_64"]
)
def test_kernel_that_may_have_it(machine: Machine, release: str) -> None:
    enforce(machine, release)
    says = f"enforcing; kernel {release} may lose connections because of it (result -13 in dmesg)"
    assert machine.says("selinux") == worth_knowing("selinux", says, MEND)


def test_denials_are_counted(machine: Machine) -> None:
    enforce(machine)
    kernel_log(
        machine,
        "block nbd0: Send control failed (result -13)",
        "block nbd0: Receive control failed (result -32)",
        "block nbd12: Send data failed (result -13)",
        "block nbd0: Receive data failed (result -13)",
        "block sda: Send control failed (result -13)",
    )
    says = "has denied the driver the use of its sockets (result -13, 3 times), which ends connections"
    assert machine.says("selinux") == in_the_way("selinux", says, MEND)


def test_denials_from_before_a_new_policy_are_old(machine: Machine) -> None:
    enforce(machine)
    kernel_log(machine, "block nbd0: Send control failed (result -13)")
    policy = machine.file("etc/selinux/targeted/policy/policy.33")
    os.utime(policy, (time.time() + 60,) * 2)
    assert machine.says("selinux") == Finding("selinux", "enforcing; it has ended no connection")


@pytest.mark.parametrize("enforcing", ["0", None])
def test_who_only_watches_denies_nothing(machine: Machine, enforcing: str | None) -> None:
    if enforcing is not None:
        machine.file("selinux/enforce", enforcing)
    kernel_log(machine, "block nbd0: Send control failed (result -13)")
    assert machine.says("selinux") is None


# -- TLS ---------------------------------------------------------------------------------------------------------------


def test_module_that_is_not_loaded_yet(machine: Machine) -> None:
    (machine.sys / "module/tls").rename(machine.sys / "module/other")
    says = "the kernel supports it; the module tls is not loaded yet"
    assert machine.says("tls") == Finding("tls", says)


@pytest.mark.parametrize("script", ["exit 1", None])
def test_no_module(machine: Machine, script: str | None) -> None:
    (machine.sys / "module/tls").rename(machine.sys / "module/other")
    if script:
        machine.program("modprobe", script)
    else:
        (machine.root / "bin/modprobe").unlink()
    says = "the kernel does not support it (no module tls): a relay encrypts instead, which is slower"
    assert machine.says("tls") == worth_knowing("tls", says, "install a kernel with CONFIG_TLS, then: modprobe tls")


def test_second_device_is_looked_at_too(machine: Machine) -> None:
    machine.idle("nbd1", 1 << 20)
    remedy = f"stop the programs that use it, then: nbdattach disconnect {NBD1.path}"
    assert machine.says("/dev/nbd1") == in_the_way("/dev/nbd1", "1048576 bytes, but nothing is attached", remedy)
