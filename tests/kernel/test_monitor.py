# SPDX-License-Identifier: GPL-2.0-or-later
"""The monitor: started when needed, one a host, killed and back again; and its answers to commands."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from leftovers import beside_the_monitor, files, monitors, workers
from load import Load, seconds_for_a_new_read
from servers import nbdkit, qemu_nbd
from test_restart import MIB, nothing_goes_wrong, place, state_of, trouble_of
from tool import (
    ALL,
    at_once,
    attached,
    command,
    connect,
    eventually,
    killed_connects,
    nbd,
    nbd_ok,
    promised,
    sparse_file,
)

from nbdattach.attached import state, status
from nbdattach.device import Device
from nbdattach.host import procfs
from nbdattach.kernel import sysfs
from nbdattach.kernel.sysfs import Kernel
from nbdattach.monitor import control, launch
from nbdattach.monitor.control import Request

pytestmark = pytest.mark.netlink
FIRST = Kernel(Device(0))
MAX_MONITOR_KB = 40 << 10
# Seconds of an outage in which the server is looked for several times, and the lines that the kernel may write then.
_A_WHILE, _LINES = 5.0, 6
STOPPED = """import os, signal
from nbdattach.monitor import control
from nbdattach import device
with control.hands_off(device.Device(0)):
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def monitor_pid() -> int:
    return int(control.ask(Request("ping"), 30))


def kill_monitor() -> None:
    pid = monitor_pid()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: pid not in monitors())


def resident_kb(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


@pytest.mark.essential
def test_connect_starts_it_and_a_second_one_refuses() -> None:
    with nbdkit("memory", "1M") as server, attached(server.uri, "nbd0"):
        (pid,) = monitors()
        assert pid == monitor_pid()
        for background in ([], ["--background"]):
            done = nbd("monitor", *background)
            assert done.code == 1
            assert "already running on this host" in done.err
        eventually(lambda: monitors() == [pid])


def test_a_setting_of_the_queue_that_waits_for_the_server_does_not_stop_the_monitor() -> None:
    """The kernel lets nobody read a setting meanwhile (6.12); what it waits for comes by the monitor only."""
    setting = Path("/sys/block/nbd0/queue/nr_requests")
    with nbdkit("memory", "16M") as server, ExitStack() as successor, attached(server.uri, "nbd0"):
        before = setting.read_text().strip()
        server.pause()
        read = subprocess.Popen(["dd", "if=/dev/nbd0", "of=/dev/null", "bs=4k", "count=1", "iflag=direct"])
        eventually(lambda: FIRST.pending)
        changed = subprocess.Popen(["sh", "-c", f"echo {int(before) // 2} >{setting}"])
        looks = time.monotonic() + 3  # one a second
        while time.monotonic() < looks:
            monitor_pid()
            time.sleep(0.1)
        server.kill()
        successor.enter_context(nbdkit("memory", "16M", port=server.tcp[1]))
        assert (read.wait(60), changed.wait(60)) == (0, 0)
        setting.write_text(before)


@pytest.mark.parametrize("order", ["resize", "reconnect"])
def test_a_server_whose_only_place_is_ours_is_said_to_be_full_perhaps(tmp_path: Path, order: str) -> None:
    image = sparse_file(tmp_path / "image", MIB)
    with qemu_nbd(str(image), "--shared=1") as server, attached(server.uri, "nbd0", connect_timeout=3):
        done = nbd(order, "nbd0")
        assert (done.code, done.out) == (3, "")
        assert "no answer within 3 s (waiting for the server's greeting): the server may be full" in done.err
        assert "-e N; a device attached to it here counts as one" in done.err
        assert len(Path("/dev/nbd0").read_bytes()) == MIB


def test_no_process_is_left_but_the_monitor() -> None:
    with nbdkit("memory", "1M") as server, attached(server.uri, "nbd0") as attachment:
        assert attachment.status().pid is None
        assert [pid for pid, _ in workers()] == monitors()
        assert len(Path("/dev/nbd0").read_bytes()) == 1 << 20


def test_without_reconnect_there_is_no_monitor() -> None:
    with nbdkit("memory", "1M") as server, attached(server.uri, "nbd0", reconnect=False):
        assert monitors() == []


@pytest.mark.essential
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, -15), (signal.SIGKILL, -9)])
def test_a_connect_interrupted_while_it_starts_the_monitor_attaches_nothing(number: int, code: int) -> None:
    """Otherwise it would be attached although the command has failed, and no monitor would watch it."""
    with nbdkit("memory", "1M") as server:
        with state.start_lock():  # another command is just about to start one
            process = subprocess.Popen(command("connect", server.uri, "nbd0"), stdout=subprocess.PIPE)
            eventually(lambda: "nbd0.json" in files())
            process.send_signal(number)
            said, _ = process.communicate(timeout=60)
        assert (process.returncode, said) == (code, b"")
        eventually(lambda: not beside_the_monitor())
        assert nbd_ok("connect", server.uri, "nbd0") == "/dev/nbd0"
        nbd_ok("disconnect", "nbd0")


@pytest.mark.essential
def test_a_connect_killed_at_any_moment_leaves_nothing() -> None:
    """The kernel undoes it by itself, or it was done; the device is good for the next one."""
    with nbdkit("--filter=delay", "memory", "1M", "delay-open=100ms", "rdelay=100ms") as server:
        for _ in killed_connects(server.uri, random.Random(7)):
            eventually(lambda: not FIRST.attached or status.status_of(Device(0)).target == server.uri)
            with attached(server.uri, "nbd0"):
                assert len(Path("/dev/nbd0").read_bytes()) == 1 << 20


@pytest.mark.timeout(400)
@pytest.mark.parametrize("connections", [1, pytest.param(4, marks=pytest.mark.essential)])
def test_killed_at_random_moments_it_loses_nothing(tmp_path: Path, connections: int) -> None:
    """While the server goes and comes, too."""
    chance = random.Random(connections)
    there = place(tmp_path, "image")
    with ExitStack() as servers, ExitStack() as stack:
        server = servers.enter_context(there.serve())
        stack.enter_context(attached(server.uri, "nbd0", connections=connections))
        load = Load("/dev/nbd0", writers=2)
        stack.enter_context(nothing_goes_wrong(load, there.image))
        for _ in range(10 if ALL else 4):
            load.see_it_run(4)
            server.kill()
            time.sleep(chance.random() * 0.5)
            kill_monitor()
            time.sleep(chance.random() * 0.3)
            launch.ensure_monitor()
            if chance.random() < 0.5:  # once more, in the middle of its adopting
                time.sleep(chance.random() * 0.3)
                kill_monitor()
                launch.ensure_monitor()
            server = servers.enter_context(there.serve())
        load.see_it_run()
        eventually(lambda: state_of("nbd0") == "connected")


def test_what_died_while_it_was_away_is_found(tmp_path: Path) -> None:
    there = place(tmp_path, "image")
    with ExitStack() as servers:
        server = servers.enter_context(there.serve())
        with attached(server.uri, "nbd0", connections=2):
            kill_monitor()
            server.kill()
            servers.enter_context(there.serve())
            (one,) = status.all_attached()
            assert one.state == "connected"  # no process knows better
            nbd_ok("monitor", "--background")
            assert seconds_for_a_new_read("/dev/nbd0") < promised(5)
            eventually(lambda: state_of("nbd0") == "connected")


def test_a_long_outage_does_not_fill_the_kernels_log(tmp_path: Path) -> None:
    """The kernel writes some lines each time that the monitor asks it about a connection."""

    def lines() -> int:
        return subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout.count("block nbd0:")

    there = place(tmp_path, "image")
    with ExitStack() as servers:
        server = servers.enter_context(there.serve())
        with attached(server.uri, "nbd0"):
            server.kill()
            for _ in range(2):
                eventually(lambda: "cannot connect" in trouble_of("nbd0"))
                before = lines()
                time.sleep(_A_WHILE)
                assert lines() - before < _LINES
                kill_monitor()
                launch.ensure_monitor()
            servers.enter_context(there.serve())
            eventually(lambda: state_of("nbd0") == "connected")


def test_a_stopped_command_does_not_keep_a_device_from_its_server(tmp_path: Path) -> None:
    """Such as a disconnect that a user has stopped (Ctrl-Z) while the monitor keeps its hands off."""
    there = place(tmp_path, "image")
    with ExitStack() as servers:
        server = servers.enter_context(there.serve())
        with attached(server.uri, "nbd0"):
            stopped = subprocess.Popen([sys.executable, "-c", STOPPED])
            try:
                eventually(lambda: procfs.stopped(stopped.pid))
                server.kill()
                servers.enter_context(there.serve())
                assert seconds_for_a_new_read("/dev/nbd0") < promised(12)
                eventually(lambda: state_of("nbd0") == "connected")
            finally:
                stopped.kill()
                stopped.wait()


def test_status_says_when_nobody_mends(tmp_path: Path) -> None:
    there = place(tmp_path, "image")
    with ExitStack() as servers:
        server = servers.enter_context(there.serve())
        with attached(server.uri, "nbd0"):
            server.kill()
            eventually(lambda: "cannot connect" in trouble_of("nbd0"))
            kill_monitor()
            done = nbd("status")
            assert "reconnecting since" in done.out
            assert "the monitor is not running" in done.out
            servers.enter_context(there.serve())
            launch.ensure_monitor()
            eventually(lambda: state_of("nbd0") == "connected")


def test_reconnect_and_resize_say_what_they_cannot_do() -> None:
    assert nbd("reconnect", "nbd0").code == 8
    with nbdkit("memory", "1M") as server:
        with attached(server.uri, "nbd0", backend="ioctl"):
            for order in ("reconnect", "resize"):
                done = nbd(order, "nbd0")
                assert done.code == 6
                assert "ioctl backend" in done.err
        for on_loss in ("wait", "wait:10"):
            done = nbd("connect", "--backend", "ioctl", "--on-loss", on_loss, server.uri, "nbd0")
            assert done.code == 6
            assert done.err.startswith("nbdattach: --on-loss: the ioctl backend cannot wait")
        nbd_ok("connect", "--backend", "ioctl", "--on-loss", "fail", server.uri, "nbd0")
        nbd_ok("disconnect", "nbd0")


def test_connects_at_once_get_a_device_each() -> None:
    count = 16 if ALL else 8
    with nbdkit("memory", "1M") as server:
        tags = [f"number {number}" for number in range(count)]
        ended = at_once(*(["connect", "--shared", "--tag", tag, server.uri] for tag in tags))
        assert [(one.code, one.err) for one in ended] == [(0, "")] * count
        names = {one.out.strip() for one in ended}
        assert len(names) == count
        assert monitors() == [monitor_pid()]
        nbd_ok("disconnect", *sorted(names))


@pytest.mark.timeout(600)
def test_many_devices_at_once_and_the_memory_of_the_monitor(tmp_path: Path) -> None:
    """More than the module made; all lose their server at once, and are back."""
    there = place(tmp_path, "image", mebibytes=1)
    count = 64 if ALL else 20
    names = []
    with ExitStack() as servers:
        server = servers.enter_context(there.serve())
        for number in range(count):
            names.append(connect(server.uri, None, tag=str(number)).device)
            if number == 0:
                first = resident_kb(monitor_pid())
        assert len(set(names)) == count
        server.kill()
        eventually(lambda: {one.state for one in status.all_attached()} == {"reconnecting"})
        servers.enter_context(there.serve())
        began = time.monotonic()
        for name in names:
            seconds_for_a_new_read(name) if sysfs.Kernel(Device(0)).size > 1 << 20 else Path(name).read_bytes()
        print(f"all read after {time.monotonic() - began:.1f} s")
        eventually(lambda: {one.state for one in status.all_attached()} == {"connected"})
        last = resident_kb(monitor_pid())
        print(f"monitor: {first} kB at 1 device, {last} kB at {count}")
        assert last <= MAX_MONITOR_KB
        nbd_ok("disconnect", *names)


def test_one_hanging_server_delays_no_other(tmp_path: Path) -> None:
    hung, good = place(tmp_path, "hung"), place(tmp_path, "good")
    with ExitStack() as servers:
        first, second = servers.enter_context(hung.serve()), servers.enter_context(good.serve())
        with attached(first.uri, "nbd0"), attached(second.uri, "nbd1"):
            first.kill()
            again = servers.enter_context(hung.serve("--filter=delay", options=["delay-open=100"]))
            eventually(lambda: state_of("nbd0") == "reconnecting")
            second.kill()
            time.sleep(0.5)
            servers.enter_context(good.serve())
            assert seconds_for_a_new_read("/dev/nbd1") < promised(1)
            assert state_of("nbd0") == "reconnecting"
            again.kill()
            servers.enter_context(hung.serve())
            assert seconds_for_a_new_read("/dev/nbd0") < promised(5)


def test_a_device_whose_server_is_gone_for_good_is_given_up_with_force(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "image", MIB)
    with nbdkit("file", f"file={image}") as server:
        connect(server.uri, "nbd0", on_loss=1)
        server.kill()
    eventually(lambda: state_of("nbd0") == "lost")
    assert nbd("disconnect", "nbd0").code == 6
    assert state_of("nbd0") == "lost"
    nbd_ok("disconnect", "--force", "nbd0")


def test_it_ends_with_sigterm_and_leaves_the_devices(tmp_path: Path) -> None:
    with nbdkit("memory", "1M") as server, attached(server.uri, "nbd0", connections=2):
        with contextlib.suppress(ProcessLookupError):
            os.kill(monitor_pid(), signal.SIGTERM)
        eventually(lambda: not monitors())
        assert len(Path("/dev/nbd0").read_bytes()) == 1 << 20


def test_a_device_that_was_detached_is_left_alone_though_a_program_keeps_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "nbdattach", "monitor"], stderr=file)
    eventually(control.answers)
    with nbdkit("memory", "1M") as server:
        connect(server.uri, "nbd0")
        with open("/dev/nbd0", "rb"):
            server.kill()
            eventually(lambda: "cannot connect" in log.read_text())
            assert nbd("disconnect", "--force", "--timeout", "1", "nbd0").code == 7
            eventually(lambda: "no longer attached" in log.read_text())
            assert state_of("nbd0") == "lost"
            assert trouble_of("nbd0").startswith("detached")
        eventually(lambda: not FIRST.attached)
    process.terminate()
    assert process.wait(60) == 0


def test_its_log_has_one_line_an_event(tmp_path: Path) -> None:
    there = place(tmp_path, "image")
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "nbdattach", "monitor"], stderr=file)
    eventually(control.answers)
    with ExitStack() as servers:
        server = servers.enter_context(there.serve())
        with attached(server.uri, "nbd0"):
            server.kill()
            eventually(lambda: "cannot connect" in log.read_text())
            time.sleep(2)
            servers.enter_context(there.serve())
            eventually(lambda: state_of("nbd0") == "connected")
    eventually(lambda: "no longer attached" in log.read_text())
    process.terminate()
    assert process.wait(60) == 0
    # A try that meets the server as it dies has another end.
    lines = [line for line in log.read_text().splitlines() if "the server closed the connection" not in line]
    assert [line.removeprefix("nbd0: ").replace(server.uri, "URI").split(" after ")[0] for line in lines] == [
        "watching URI",
        "connection to URI lost; requests wait 300 s",
        "URI: cannot connect: Connection refused",
        "URI connected again",
        "no longer attached",
    ]
