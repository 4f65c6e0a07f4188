# SPDX-License-Identifier: GPL-2.0-or-later
"""How attachments end: disconnect, signals, kill -9, a server that dies; nothing is left afterwards."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from leftovers import leftovers, workers
from servers import nbdkit
from tool import (
    ALL,
    attached,
    command,
    connect,
    digest_of,
    eventually,
    fill_with_noise,
    killed_connects,
    nbd,
    nbd_ok,
    partitioned_image,
    runs,
    shell,
    sparse_file,
)

from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel

# Mostly the worker; test_monitor and test_restart have the life and end of attachments by netlink.
pytestmark = pytest.mark.ioctl
FIRST = Kernel(Device(0))
MAX_WORKER_KB = 10 << 10


def worker_pid() -> int:
    pid = FIRST.pid
    assert pid is not None
    return pid


@pytest.mark.row(11)
@pytest.mark.timeout(400)
def test_many_rounds_leave_no_process_no_file_no_device_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with nbdkit("memory", "4M") as server:
        for _ in range(200 if ALL else 20):
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
            connect(server.uri, "nbd0")
            os.kill(worker_pid(), signal.SIGKILL)
            eventually(lambda: not FIRST.attached)
        with attached(server.uri):
            assert FIRST.size == 1 << 20
        assert nbd("status").out == ""


def test_a_server_that_dies_under_a_mount_leaves_a_lost_device_that_says_what_it_was(tmp_path: Path) -> None:
    with nbdkit("memory", "32M") as server:
        connect(server.uri, "nbd0")
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        server.kill()
        eventually(lambda: not workers())
        (lost,) = nbd("status", "--json").json()
        assert (lost["state"], lost["mounts"], lost["target"]) == ("lost", ["/mnt"], server.uri)
        assert nbd("disconnect", "nbd0").code == 7
        shell("umount /mnt")
        nbd_ok("disconnect", "nbd0")


@pytest.mark.loop
def test_a_loop_device_on_it_is_a_user() -> None:
    shell("modprobe loop")
    with nbdkit("memory", "4M") as server, attached(server.uri) as attachment:
        loop = shell("losetup -f --show /dev/nbd0").strip()
        try:
            done = nbd("disconnect", "nbd0")
            assert (done.code, done.err.splitlines()[0]) == (
                7,
                f"nbdattach: /dev/nbd0: held by {loop[5:]} (a loop device)",
            )
            assert attachment.status().holders == [loop[5:]]
            assert len(Path(loop).read_bytes()) == 4 << 20
        finally:
            shell(f"losetup -d {loop}")


def test_kill_9_of_the_worker_under_a_mount_says_what_to_release(tmp_path: Path) -> None:
    with nbdkit("memory", "32M") as server:
        connect(server.uri, "nbd0")
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        os.kill(worker_pid(), signal.SIGKILL)
        eventually(lambda: not workers())
        (lost,) = nbd("status", "--json").json()
        assert (lost["state"], lost["mounts"], lost["target"]) == ("lost", ["/mnt"], server.uri)
        for tag in ("other", server.uri):
            done = nbd("connect", "--tag", tag, server.uri, "nbd0")
            assert (done.code, done.out) == (7, "")
            assert "holds the rest of a lost attachment, and is still mounted at /mnt" in done.err
        assert "/dev/nbd0: lost" in nbd("doctor").out
        shell("umount /mnt")
        eventually(lambda: not FIRST.attached)
        with attached(server.uri):
            assert FIRST.size == 32 << 20


@pytest.mark.essential
def test_a_connect_killed_at_any_moment_leaves_nothing() -> None:
    """kill -9 after a random part of the time that a connect takes: it is undone, or it was done."""
    with nbdkit("--filter=delay", "memory", "1M", "delay-open=100ms", "rdelay=100ms") as server:
        for _ in killed_connects(server.uri, random.Random(5)):
            eventually(lambda: not leftovers() or os.path.exists("/run/nbdattach/nbd0.json"))
            if leftovers():  # it was undone, or it was done
                eventually(lambda: not leftovers() or nbd("status", "nbd0").code == 0)
                nbd_ok("disconnect", "nbd0")
            assert not leftovers()


@pytest.mark.essential
def test_memory_of_the_worker() -> None:
    with nbdkit("memory", "1M") as server, attached(server.uri):
        status = Path(f"/proc/{worker_pid()}/status").read_text()
        resident = int(status.split("VmRSS:")[1].split()[0])
        assert resident <= MAX_WORKER_KB
        assert status.split("PPid:")[1].split()[0] == "1"


def test_a_server_that_dies_ends_the_attachment_and_the_next_one_works(tmp_path: Path) -> None:
    with nbdkit("memory", "1M") as server:
        connect(server.uri, "nbd0")
        server.kill()
        eventually(lambda: not leftovers())
    with nbdkit("memory", "2M") as server, attached(server.uri):
        assert FIRST.size == 2 << 20


def test_disconnect_from_a_server_that_is_silent() -> None:
    with nbdkit("memory", "1M") as server:
        connect(server.uri, "nbd0")
        server.pause()
        try:
            os.kill(worker_pid(), signal.SIGKILL)  # a flush would wait for the server; a user gives up in this way
            eventually(lambda: not FIRST.attached)
            nbd_ok("disconnect", "nbd0")
            assert not leftovers()
        finally:
            server.resume()


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
    answers = ["get_size=echo 1M", "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null", "can_write=exit 0"]
    with nbdkit("eval", *answers, "can_flush=exit 0", "flush=echo EIO no >&2; exit 1") as server:
        nbd_ok("connect", server.uri, "nbd0")
        fill_with_noise("/dev/nbd0", 1)
        done = nbd("disconnect", "nbd0")
        assert (done.code, FIRST.attached) == (6, True)
        assert done.err.splitlines()[0] == "nbdattach: /dev/nbd0: flushing to the server: Input/output error (EIO)"
        server.kill()
        eventually(lambda: not leftovers())


def test_what_was_written_through_a_partition_is_flushed_too(tmp_path: Path) -> None:
    image = partitioned_image(tmp_path / "image")
    with nbdkit("file", f"file={image}") as server:
        nbd_ok("connect", server.uri, "nbd0")
        with open("/dev/nbd0p1", "r+b", buffering=0) as partition:
            partition.write(b"x" * 4096)
            done = nbd("disconnect", "nbd0")
            assert (done.code, f"open in process {os.getpid()} " in done.err, FIRST.attached) == (7, True, True)
        nbd_ok("disconnect", "nbd0")
    assert image.read_bytes()[1 << 20 :][:4096] == b"x" * 4096


def test_a_failing_flush_of_a_partition_detaches_nothing(tmp_path: Path) -> None:
    image = partitioned_image(tmp_path / "image")
    broken = tmp_path / "broken"
    filters = ["--filter=error", "file", f"file={image}", "error-pwrite-rate=100%", f"error-file={broken}"]
    with nbdkit(*filters) as server:
        nbd_ok("connect", server.uri, "nbd0")
        broken.touch()
        shell("dd if=/dev/zero of=/dev/nbd0p1 bs=4096 count=1 status=none")
        assert (nbd("disconnect", "nbd0").code, FIRST.attached) == (6, True)
        broken.unlink()
        assert (nbd("disconnect", "nbd0").code, FIRST.attached) == (6, True)  # it is lost anyway
        nbd_ok("disconnect", "--force", "nbd0")


def test_sigterm_loses_nothing_that_could_not_be_written(tmp_path: Path) -> None:
    """Not at first, not the second time, when the kernel no longer reports it, and not by a later disconnect."""
    broken = tmp_path / "broken"
    with nbdkit("--filter=error", "memory", "1M", "error-pwrite-rate=100%", f"error-file={broken}") as server:
        connect(server.uri, "nbd0")
        broken.touch()
        shell("dd if=/dev/zero of=/dev/nbd0 bs=4096 count=1 status=none")
        line = "/dev/nbd0: not detached on SIGTERM: flushing: Input/output error"
        for _ in range(2):
            shell("dmesg -C")
            os.kill(worker_pid(), signal.SIGTERM)
            eventually(lambda: line in shell("dmesg") or not FIRST.attached)
            assert FIRST.attached
            broken.unlink(missing_ok=True)
        assert (nbd("disconnect", "nbd0").code, FIRST.attached) == (6, True)
        nbd_ok("disconnect", "--force", "nbd0")


def is_refused(pid: int) -> bool:
    """Whether a mount fails. If one was faster than the worker, it is undone, and the worker gets the signal again."""
    if subprocess.run(["mount", "/dev/nbd0", "/mnt"], stderr=subprocess.DEVNULL).returncode:
        return True
    shell("umount /mnt")
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    return False


def test_nobody_can_begin_to_use_what_sigterm_is_detaching() -> None:
    """The server does not answer NBD_CMD_DISC, so the detach takes its 5 s; meanwhile the device is claimed."""
    with nbdkit("memory", "32M") as server:
        connect(server.uri, "nbd0")
        shell("mkfs.ext4 -q /dev/nbd0")
        server.pause()
        pid = worker_pid()
        os.kill(pid, signal.SIGTERM)
        server.resume()
        eventually(lambda: not FIRST.attached or is_refused(pid))
        eventually(lambda: not leftovers())


def test_a_program_that_looks_at_the_device_as_it_goes_leaves_no_file_behind() -> None:
    with nbdkit("memory", "1M") as server:
        connect(server.uri, "nbd0")
        looking = os.open("/dev/nbd0", os.O_RDONLY | os.O_DIRECT)
        os.kill(worker_pid(), signal.SIGTERM)
        eventually(lambda: not can_read(looking))
        os.close(looking)
        eventually(lambda: not leftovers())


def can_read(fd: int) -> bool:
    """From a device that is open with O_DIRECT; not once it is detached."""
    try:
        os.preadv(fd, [mmap.mmap(-1, 4096)], 0)
    except OSError:
        return False
    return True


def test_a_disconnect_that_waits_for_a_silent_server_can_be_interrupted() -> None:
    with nbdkit("memory", "4M") as server:
        nbd_ok("connect", server.uri, "nbd0")
        fill_with_noise("/dev/nbd0", 1)
        server.pause()
        try:
            process = subprocess.Popen(command("disconnect", "nbd0"))
            eventually(lambda: runs("nbdattach-flush"))
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 1
            assert FIRST.attached
        finally:
            server.resume()
        eventually(lambda: not runs("nbdattach-flush"))
        nbd_ok("disconnect", "nbd0")


def test_a_worker_stuck_in_sending_to_a_silent_server_comes_loose_on_undo() -> None:
    with nbdkit("memory", "64M") as server:
        nbd_ok("connect", server.uri, "nbd0")
        server.pause()
        try:
            writer = subprocess.Popen(
                "dd if=/dev/zero of=/dev/nbd0 bs=1M count=32 oflag=direct", shell=True, stderr=subprocess.DEVNULL
            )
            eventually(lambda: int(Path("/sys/block/nbd0/inflight").read_text().split()[1]) > 0)
            server.kill(signal.SIGKILL)
            assert writer.wait(60) != 0
        finally:
            server.resume()
        eventually(lambda: not FIRST.attached)
        nbd_ok("disconnect", "nbd0")


def test_an_old_handle_does_not_detach_what_came_after() -> None:
    with nbdkit("memory", "1M") as first, nbdkit("memory", "2M") as second:
        old = connect(first.uri, "nbd0")
        first.kill()
        eventually(lambda: not FIRST.attached)
        with attached(second.uri):
            old.disconnect()
            assert FIRST.size == 2 << 20


def test_whoever_cannot_be_told_the_device_does_not_have_it() -> None:
    with nbdkit("memory", "1M") as server:
        done = subprocess.run(
            f"{shlex.join(command('connect', server.uri, 'nbd0'))} >/dev/full", shell=True, capture_output=True
        )
        assert done.returncode == 1
        assert done.stderr.startswith(b"nbdattach: cannot write the result: No space left on device\n(")
        assert not leftovers()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_files_do_no_harm(closed: str) -> None:
    with nbdkit("memory", "1M") as server:
        shell(f"{shlex.join(command('connect', server.uri, 'nbd0'))} {closed}")
        assert FIRST.size == 1 << 20
        nbd_ok("disconnect", "nbd0")


def test_in_a_pid_namespace_of_its_own() -> None:
    with nbdkit("memory", "1M") as server:
        tool = f"{sys.executable} -m nbdattach"
        inner = f"{tool} connect --backend ioctl {server.uri} nbd0 && {tool} status && {tool} disconnect nbd0"
        said = shell(f"unshare --pid --fork --mount-proc sh -c '{inner}'")
        assert "connected" in said
        assert not leftovers()


@pytest.mark.rare  # 75 s of waiting
@pytest.mark.timeout(300)
def test_slow_is_not_dead_with_several_connections() -> None:
    """At its default the driver takes a request of 30 s for a dead connection, and fails it after the second one."""
    with nbdkit("memory", "4M") as server, attached(server.uri, connections=2):
        server.pause()
        reader = subprocess.Popen("dd if=/dev/nbd0 of=/dev/null bs=4096 count=8 iflag=direct status=none", shell=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            reader.wait(75)
        server.resume()
        assert reader.wait(60) == 0


@pytest.mark.essential
def test_a_server_without_write_zeroes_is_never_sent_any() -> None:
    """The driver of 6.12 cannot switch it off once an attachment had it on."""
    with nbdkit("memory", "1M") as server, attached(server.uri):
        pass
    with nbdkit("--filter=nozero", "memory", "1M") as server, attached(server.uri):
        shell("blkdiscard -z /dev/nbd0 && fallocate -z -l 4096 /dev/nbd0")


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
            command("connect", "-f", server.uri, "nbd0"),
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
        process = subprocess.Popen(command("connect", "-f", server.uri, "nbd0"), stderr=subprocess.PIPE, text=True)
        eventually(lambda: os.path.exists("/run/nbdattach/nbd0.json"))
        server.kill()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 3
        assert "no longer attached" in err
