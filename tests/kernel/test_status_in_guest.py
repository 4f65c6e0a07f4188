# SPDX-License-Identifier: GPL-2.0-or-later
"""`status` tells the kernel's truth: of our devices and foreign ones, of the living and the dead, of one and many."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from leftovers import monitors, workers
from servers import nbdkit
from tool import ALL, BACKEND, BY_IOCTL, attached, connect, eventually, nbd, nbd_ok, shell

import nbdattach
from nbdattach.attached import state, status
from nbdattach.cli import status_table
from nbdattach.device import Device
from nbdattach.kernel import sysfs
from nbdattach.kernel.sysfs import Kernel

pytestmark = pytest.mark.any_monitor

PYTHON_PAGE = Path(__file__).parents[2] / "man/nbdattach-python.7"
FIRST = Kernel(Device(0))
# 64 devices are to cost less than 100 ms of CPU. A look costs a machine some 10 us, and as much is computed on it.
LOOKS_A_DEVICE = 30


def told(device: str = "nbd0") -> Any:
    (found,) = nbd("status", "--json", device).json()
    return found


def test_ours(tmp_path: Path) -> None:
    with nbdkit("memory", "32M") as server, attached(server.uri, "nbd0", tag="mine") as attachment:
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        found = told()
        assert {key: found[key] for key in ("device", "state", "tag", "target", "size", "backend", "mounts")} == {
            "device": "/dev/nbd0", "state": "connected", "tag": "mine", "target": server.uri, "size": 32 << 20,
            "backend": BACKEND, "mounts": ["/mnt"],
        }  # fmt: skip
        assert (found["pid"] is None) == (BACKEND == "netlink")
        table = nbd_ok("status").splitlines()
        assert len(table) == 2 and max(map(len, table)) <= 80 and table[1].endswith("/mnt")
        shell("umount /mnt")
        assert attachment.status().mounts == []


def test_mounts_of_other_namespaces_are_told_where_there_are_none_here() -> None:
    """As services with a private /tmp have them of the disk that /tmp is on."""
    program = "mount --make-rprivate / && mount --bind /mnt /srv && echo ready && exec sleep 600"
    with nbdkit("memory", "32M") as server, attached(server.uri, "nbd0") as attachment:
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        service = subprocess.Popen(["unshare", "-m", "sh", "-c", program], stdout=subprocess.PIPE)
        assert service.stdout and service.stdout.readline()
        assert attachment.status().mounts == ["/mnt"]
        shell("umount /mnt")
        assert attachment.status().mounts == ["/mnt", "/srv"]
        service.kill()
        service.wait()
        eventually(lambda: not attachment.status().mounts)


@pytest.mark.spoils
def test_a_foreign_one() -> None:
    with nbdkit("memory", "1M") as server:
        shell(f"nbd-client {BY_IOCTL} 127.0.0.1 {server.place[1]} /dev/nbd0")
        found = told()
        assert (found["state"], found["target"], found["tag"], found["backend"]) == ("connected", None, None, None)
        assert Path(f"/proc/{found['pid']}/comm").read_text() == "nbd-client\n"
        nbd_ok("disconnect", "nbd0")


@pytest.mark.ioctl
def test_a_killed_worker_and_a_pid_that_another_program_has_now(monkeypatch: pytest.MonkeyPatch) -> None:
    with nbdkit("memory", "32M") as server:
        connect(server.uri, "nbd0")
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        worker = told()["pid"]
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: [pid for pid, _ in workers()] == monitors())
        assert (told()["state"], told()["target"]) == ("lost", server.uri)
        # The kernel numbers on; the number comes round again in seconds on a busy host.
        with subprocess.Popen(["sleep", "60"]) as sleeper:
            try:
                monkeypatch.setattr(Kernel, "pid", sleeper.pid)
                found = status.status_of(Device(0))
                assert (found.state, found.target) == ("lost", None)
            finally:
                sleeper.kill()
        monkeypatch.undo()
        shell("umount /mnt")
        nbd_ok("disconnect", "nbd0")


@pytest.mark.netlink
def test_another_user_is_not_told_that_a_device_without_a_server_is_connected() -> None:
    with nbdkit("memory", "1M") as server:
        connect(server.uri, "nbd0")
        server.kill()
        eventually(lambda: told()["state"] == "reconnecting")
        assert state_for(65534) == "unknown"
    nbd_ok("disconnect", "--force", "nbd0")


def state_for(user: int) -> str:
    out, into = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setuid(user)
            os.write(into, status.status_of(Device(0)).state.encode())
        finally:
            os._exit(0)
    os.close(into)
    with open(out) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.netlink
def test_reconnecting() -> None:
    with nbdkit("memory", "1M") as server:
        connect(server.uri, "nbd0", on_loss=15.0)
        server.kill()
        # The first attempt fails a moment after the loss.
        eventually(lambda: "Connection refused" in (told().get("trouble", {}).get("error") or ""))
        found = told()
        assert found["state"] == "reconnecting"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["trouble"]["since"])
        assert f"reconnecting since {found['trouble']['since']}" in nbd_ok("status")
        eventually(lambda: told()["state"] == "lost")
    nbd_ok("disconnect", "--force", "nbd0")


@pytest.mark.spoils
def test_the_state_file_of_a_dead_attachment_is_not_believed() -> None:
    with nbdkit("memory", "1M") as server:
        with attached(server.uri, "nbd0"):
            record = Path(state.path(Device(0))).read_text()
        Path(state.path(Device(0))).write_text(record)
        assert nbd("status", "nbd0").code == 8
        assert nbd_ok("status", "--json") == "[]"
        shell(f"nbd-client {BY_IOCTL} 127.0.0.1 {server.place[1]} /dev/nbd0")
        assert (told()["target"], told()["tag"]) == (None, None)
        nbd_ok("disconnect", "nbd0")


def looks(work: Callable[[], object]) -> int:
    """How often it opens a file, or asks for the names or attributes of some."""
    calls = {"open", "listdir", "scandir", "stat", "lstat", "readlink", "access"}
    done = 0

    def noted(_: FrameType, event: str, function: object) -> None:
        nonlocal done
        if event == "c_call" and getattr(function, "__name__", "") in calls:
            done += 1

    sys.setprofile(noted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return done


@pytest.mark.netlink
@pytest.mark.timeout(600)
def test_many_devices_cost_little() -> None:
    count = 64 if ALL else 20
    with nbdkit("memory", "1M") as server, contextlib.ExitStack() as stack:
        for number in range(count):
            stack.enter_context(attached(server.uri, f"nbd{number}", tag=f"tag{number}", reconnect=False))
        made = looks(lambda: status_table.usual_table(status.all_attached(), 80))
        print(f"status of {count} devices: {made} looks, {made / count:.0f} each")
        assert len(status_table.usual_table(status.all_attached(), 80).splitlines()) == count + 1
        assert made < count * LOOKS_A_DEVICE
        assert [one["tag"] for one in nbd("status", "--json").json()] == [f"tag{number}" for number in range(count)]
    shell("modprobe -r nbd && modprobe nbd")
    assert len(sysfs.devices()) == 16


def test_the_python_of_its_man_page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As its first example stands there; by this lane's backend."""
    program, *_ = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", PYTHON_PAGE.read_text(), re.DOTALL | re.MULTILINE)
    program = program.replace(r"\e", "\\")
    monkeypatch.setattr(nbdattach, "connect", functools.partial(nbdattach.connect, backend=BACKEND), raising=False)
    if BACKEND == "ioctl":
        program = program.replace(', on_loss=float("inf")', "")
    with nbdkit("memory", "1M", port=10809):
        exec(program, {})
    said = capsys.readouterr().out.splitlines()
    assert said == ["/dev/nbd0 connected 1048576 []", "/dev/nbd0 db nbd://localhost"]
    assert not FIRST.attached
