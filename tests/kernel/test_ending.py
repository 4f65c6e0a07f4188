"""How attachments end: disconnect, signals, kill -9, a server that dies; and what is left afterwards: nothing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import leftovers, workers
from servers import nbdkit
from tool import attached, digest_of, eventually, fill_with_noise, nbd, nbd_ok, shell, sparse_file

import nbdattach
from nbdattach.device import Device
from nbdattach.sysfs import Kernel

FIRST = Kernel(Device(0))
MAX_WORKER_KB = 10 << 10


def worker_pid() -> int:
    pid = FIRST.pid
    assert pid is not None
    return pid


@pytest.mark.row(11)
@pytest.mark.timeout(400)
def test_200_rounds_leave_no_process_no_file_no_device_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with nbdkit("memory", "4M") as server:
        for _ in range(200):
            with attached(server.uri):
                assert FIRST.size == 4 << 20
            assert not FIRST.attached and not FIRST.size
    assert not leftovers()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.essential
@pytest.mark.row(10)
def test_sigterm_to_the_worker_is_a_proper_detach(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "image", 16 << 20)
    with nbdkit("file", f"file={image}") as server:
        nbd_ok("connect", server.uri, "nbd0")
        written = fill_with_noise("/dev/nbd0", 16)
        os.kill(worker_pid(), signal.SIGTERM)
        eventually(lambda: not leftovers())
        assert digest_of(image) == written


def test_sigterm_while_mounted_is_refused_and_logged(tmp_path: Path) -> None:
    with nbdkit("memory", "32M") as server, attached(server.uri):
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        os.kill(worker_pid(), signal.SIGTERM)
        eventually(lambda: "not detached on SIGTERM: it is in use" in shell("dmesg"))
        shell("echo still writable > /mnt/file && sync /mnt/file && umount /mnt")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM, signal.SIGCHLD, signal.SIGPIPE])
def test_other_signals_do_not_end_the_attachment(number: int) -> None:
    with nbdkit("memory", "1M") as server, attached(server.uri):
        os.kill(worker_pid(), number)
        assert len(Path("/dev/nbd0").read_bytes()) == 1 << 20
        assert FIRST.attached


@pytest.mark.essential
def test_kill_9_of_the_worker_leaves_a_device_for_the_next_connect() -> None:
    with nbdkit("memory", "1M") as server:
        for _ in range(5):
            nbdattach.connect(server.uri, "nbd0")
            os.kill(worker_pid(), signal.SIGKILL)
            eventually(lambda: not FIRST.attached)
        with attached(server.uri):
            assert FIRST.size == 1 << 20
        assert nbd("status").out == ""


def test_a_server_that_dies_under_a_mount_leaves_a_lost_device_that_says_what_it_was(tmp_path: Path) -> None:
    with nbdkit("memory", "32M") as server:
        nbdattach.connect(server.uri, "nbd0")
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        server.kill()
        eventually(lambda: not workers())
        (lost,) = nbd("status", "--json").json()
        assert (lost["state"], lost["mounts"], lost["target"]) == ("lost", ["/mnt"], server.uri)
        assert nbd("disconnect", "nbd0").code == 7
        shell("umount /mnt")
        nbd_ok("disconnect", "nbd0")


@pytest.mark.stock
def test_a_loop_device_on_it_is_a_user() -> None:
    shell("modprobe loop")
    with nbdkit("memory", "4M") as server, attached(server.uri) as attachment:
        loop = shell("losetup -f --show /dev/nbd0").strip()
        try:
            done = nbd("disconnect", "nbd0")
            assert (done.code, done.err.splitlines()[0]) == (7, f"nbdattach: /dev/nbd0: held by {loop[5:]}")
            assert attachment.status().holders == [loop[5:]]
            assert len(Path(loop).read_bytes()) == 4 << 20
        finally:
            shell(f"losetup -d {loop}")


def test_kill_9_of_the_worker_under_a_mount_says_what_to_release(tmp_path: Path) -> None:
    with nbdkit("memory", "32M") as server:
        nbdattach.connect(server.uri, "nbd0")
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        os.kill(worker_pid(), signal.SIGKILL)
        eventually(lambda: not workers())
        (lost,) = nbd("status", "--json").json()
        assert (lost["state"], lost["mounts"], lost["target"]) == ("lost", ["/mnt"], server.uri)
        for tag in ("other", server.uri):
            done = nbd("connect", "--tag", tag, server.uri, "nbd0")
            assert (done.code, done.out) == (7, "")
            assert "holds what is left of a lost attachment, and is still mounted at /mnt" in done.err
        assert "/dev/nbd0: lost" in nbd("doctor").out
        shell("umount /mnt")
        eventually(lambda: not FIRST.attached)
        with attached(server.uri):
            assert FIRST.size == 32 << 20


@pytest.mark.essential
def test_a_connect_killed_at_any_moment_leaves_nothing() -> None:
    """kill -9 after a random part of the time that a connect takes: it is undone, or it was done."""
    chance = random.Random(5)
    with nbdkit("--filter=delay", "memory", "1M", "delay-open=100ms", "rdelay=100ms") as server:
        began = time.monotonic()
        nbd_ok("connect", server.uri, "nbd0")
        took = time.monotonic() - began
        nbd_ok("disconnect", "nbd0")
        for _ in range(8):
            process = subprocess.Popen(
                [sys.executable, "-m", "nbdattach", "connect", server.uri, "nbd0"], stdout=subprocess.DEVNULL
            )
            time.sleep(chance.uniform(0.3, 1.0) * took)
            process.kill()
            process.wait()
            eventually(lambda: not workers() or os.path.exists("/run/nbdattach/nbd0.json"))
            nbd_ok("disconnect", "nbd0")
            eventually(lambda: not leftovers())


@pytest.mark.essential
def test_memory_of_the_worker() -> None:
    with nbdkit("memory", "1M") as server, attached(server.uri):
        status = Path(f"/proc/{worker_pid()}/status").read_text()
        resident = int(status.split("VmRSS:")[1].split()[0])
        assert resident <= MAX_WORKER_KB
        assert status.split("PPid:")[1].split()[0] == "1"


def test_a_server_that_dies_ends_the_attachment_and_the_next_one_works(tmp_path: Path) -> None:
    with nbdkit("memory", "1M") as server:
        nbdattach.connect(server.uri, "nbd0")
        server.kill()
        eventually(lambda: not leftovers())
    with nbdkit("memory", "2M") as server, attached(server.uri):
        assert FIRST.size == 2 << 20


def test_disconnect_from_a_server_that_is_silent() -> None:
    with nbdkit("memory", "1M") as server:
        nbdattach.connect(server.uri, "nbd0")
        server.pause()
        try:
            os.kill(worker_pid(), signal.SIGKILL)  # a flush would wait for the server; a user gives up so
            eventually(lambda: not FIRST.attached)
            nbd_ok("disconnect", "nbd0")
            assert not leftovers()
        finally:
            server.resume()


def test_a_server_that_never_answers_reads_is_a_deadline() -> None:
    with nbdkit("--filter=delay", "memory", "1M", "rdelay=60") as server:
        done = nbd("connect", "--connect-timeout", "3", server.uri, "nbd0")
        assert done.code == 3
        assert "no answer within 3 s (the kernel reads the partition table)" in done.err
        eventually(lambda: not leftovers())


def test_disconnect_of_what_is_not_attached_is_a_success_that_says_so() -> None:
    done = nbd("disconnect", "nbd0", "/dev/nbd5")
    assert done.code == 0
    assert "/dev/nbd0: not attached, nothing to do" in done.err


@pytest.mark.essential
def test_a_mounted_device_is_not_detached(tmp_path: Path) -> None:
    with nbdkit("memory", "32M") as server, attached(server.uri):
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        done = nbd("disconnect", "nbd0")
        assert done.code == 7
        assert done.err.splitlines()[0] == "nbdattach: /dev/nbd0: mounted at /mnt"
        assert nbd("status", "--json").json()[0]["mounts"] == ["/mnt"]
        shell("echo hello > /mnt/file && umount /mnt")


def test_a_failing_flush_detaches_nothing() -> None:
    answers = ["get_size=echo 1M", "pread=head -c $3 /dev/zero", "pwrite=exit 0", "can_write=exit 0"]
    with nbdkit("eval", *answers, "can_flush=exit 0", "flush=echo EIO no >&2; exit 1") as server:
        nbd_ok("connect", server.uri, "nbd0")
        fill_with_noise("/dev/nbd0", 1)
        done = nbd("disconnect", "nbd0")
        assert (done.code, FIRST.attached) == (6, True)
        assert done.err.splitlines()[0] == "nbdattach: /dev/nbd0: flushing to the server: Input/output error (EIO)"
        server.kill()
        eventually(lambda: not leftovers())


def test_swap_is_locked_in_memory_and_held() -> None:
    with nbdkit("memory", "32M") as server, attached(server.uri, swap=True) as attachment:
        status = Path(f"/proc/{worker_pid()}/status").read_text()
        assert int(status.split("VmLck:")[1].split()[0]) > 0
        assert Path(f"/proc/{worker_pid()}/oom_score_adj").read_text().strip() == "-1000"
        shell("mkswap /dev/nbd0 && swapon /dev/nbd0")
        try:
            assert attachment.status().holders == ["swap"]
            assert nbd("disconnect", "nbd0").err.startswith("nbdattach: /dev/nbd0: swapped on")
        finally:
            shell("swapoff /dev/nbd0")


def test_foreground_stays_tells_systemd_and_detaches_on_sigterm(tmp_path: Path) -> None:
    place = f"{tmp_path}/notify"
    with nbdkit("memory", "32M") as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(place)
        systemd.settimeout(60)
        process = subprocess.Popen(
            [sys.executable, "-m", "nbdattach", "connect", "-f", server.uri, "nbd0"],
            env={**os.environ, "NOTIFY_SOCKET": place},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert systemd.recv(4096).startswith(b"READY=1")
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        process.send_signal(signal.SIGTERM)
        assert systemd.recv(4096) == b"STOPPING=1"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
        assert process.poll() is None, "it left while the device was mounted"
        shell("umount /mnt")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "/dev/nbd0\n")
        assert "mounted at /mnt" in err


def test_foreground_ends_with_an_error_when_the_server_dies() -> None:
    with nbdkit("memory", "1M") as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "nbdattach", "connect", "-f", server.uri, "nbd0"], stderr=subprocess.PIPE, text=True
        )
        eventually(lambda: os.path.exists("/run/nbdattach/nbd0.json"))
        server.kill()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 3
        assert "no longer attached" in err
