# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine without a disk, and the server that has its root file system. Knows no test.

It is user-mode Linux, or a stock kernel in QEMU, which is emulated: it has two CPUs, and takes ten times as long. For
either, this machine is 10.0.2.2: for QEMU by its user-mode network, otherwise on a tap device.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

from listening import listens
from servers import free_port, poll

# Pure emulation, on a machine that has other work: seconds.
BOOT = 400.0
ANSWER = 120.0
POWER_OFF = 400.0
# systemd tells from 5 s on for how long it has waited: "A stop job is running for NAME (6s / 1min 30s)".
_STOP_JOB = re.compile(r"[Aa] stop job is running for .*?\((?:(\d+)min )?(\d+)s / ")
_POLL = 0.1
HOST, TAP = "10.0.2.2", "root0"
_ADDRESS = f"10.0.2.15::{HOST}:255.255.255.0::vec0:off"


class Server:
    """nbdkit with one image, at its own port, which stays the same over restarts."""

    def __init__(self, image: Path, *, tls: Path | None = None) -> None:
        self.image = image
        self.log = image.with_suffix(".requests")
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    def start(self) -> None:
        words = ["nbdkit", "-f", "-p", str(self.port), "--filter=log"]
        if self._tls:
            words += ["--tls=require", f"--tls-certificates={self._tls}"]
        words += ["file", str(self.image), f"logfile={self.log}", "logappend=true"]
        self._process = subprocess.Popen(words)
        process = self._process
        poll(lambda: process.poll() is not None or listens(process.pid, ("", self.port)), "nbdkit to listen")
        assert process.poll() is None, "nbdkit has ended"

    def kill(self) -> None:
        """In the hardest way: no client gets a message."""
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def unflushed(self) -> list[str]:
        """Writes that nothing has asked to be kept: neither they themselves nor a flush after them."""
        found: list[str] = []
        for line in self.log.read_text().splitlines():
            words = line.split()
            if "Flush" in words:
                found = []
            elif {"Write", "Zero", "Trim"} & set(words) and "fua=1" not in words:
                found.append(line)
        return found


class Machine:
    """Boots when it is made, from the kernel and the initramfs in that folder."""

    def __init__(self, kernel: str, folder: Path, files: Path, words: str, initramfs: str) -> None:
        self._console = folder / "console.log"
        self._count = 0
        self._heard = b""
        self._shell, theirs = socket.socketpair()
        start = _qemu if kernel.endswith("-qemu") else _uml
        self._idle_boot = _IDLE_BOOT[start]
        self._began, self._boot_seconds = time.monotonic(), 0.0
        with theirs, self._console.open("wb") as console:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *start(files, words, initramfs, theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                cwd=files / "kernel",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @property
    def console(self) -> str:
        return self._console.read_text(errors="replace")

    def wait_until_up(self) -> None:
        """Its shell listens then."""
        self._hear_until(b"READY\n", BOOT, "booted")
        self._boot_seconds = time.monotonic() - self._began
        self._heard = b""

    def wait_until_off(self) -> None:
        self._process.wait(BOOT)

    def do(self, command: str, seconds: float = ANSWER) -> str:
        """The output of the command; it has to succeed."""
        return self.answer(self.ask(command), seconds)

    def ask(self, command: str) -> int:
        """Types the command, and does not wait for it: the number of the question."""
        self._count += 1
        self._shell.sendall(f'( {command}\n) </dev/null 2>&1; echo "END-{self._count} $?"\n'.encode())
        return self._count

    def answer(self, number: int, seconds: float = ANSWER) -> str:
        mark = f"END-{number} ".encode()
        self._hear_until(mark, seconds, f"answered question {number}")
        self._hear_until(b"\n", seconds, "said all", after=mark)
        said, _, rest = self._heard.partition(mark)
        code, _, self._heard = rest.partition(b"\n")
        assert int(code) == 0, said.decode(errors="replace")
        return said.decode(errors="replace").strip()

    def _hear_until(self, mark: bytes, seconds: float, what: str, after: bytes = b"") -> None:
        deadline = time.monotonic() + seconds
        while mark not in self._heard.partition(after)[2] if after else mark not in self._heard:
            self._see_it_lives(deadline, f"{what}; it has said {self._heard!r}")
            self._shell.settimeout(1.0)
            with contextlib.suppress(TimeoutError):
                self._heard += self._shell.recv(65536)

    def _see_it_lives(self, deadline: float, what: str) -> None:
        tail = "\n".join(self.console.splitlines()[-40:])
        assert self._process.poll() is None, f"the machine has ended:\n{tail}"
        assert not re.search("ALERT!|Kernel panic|System halted", tail), tail
        assert time.monotonic() < deadline, f"the machine has not {what}\n{tail}"

    def power_off(self) -> None:
        """By systemctl."""
        self._shell.sendall(b"systemctl poweroff\n")
        self._process.wait(POWER_OFF)

    def see_quick_stops(self) -> None:
        """No stop job ran for longer than 10 s; on a machine that is busy with other things, for so much longer."""
        slowness = max(1.0, self._boot_seconds / self._idle_boot)
        longest = max((_seconds(*told) for told in _STOP_JOB.findall(self.console)), default=0)
        print(
            f"the longest stop: {longest} s; {slowness:.1f} times as slow as idle, booted in {self._boot_seconds:.0f} s"
        )
        # A stop job that never ends is killed after 90 s, which no slowness explains.
        allowed = min(10 * slowness, 80)
        assert longest < allowed, f"a stop job ran for {longest} s, {allowed:.1f} s are allowed"

    def end(self) -> None:
        # UML has helpers, which are of its group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._shell.close()


def _seconds(minutes: str, seconds: str) -> int:
    return 60 * int(minutes or 0) + int(seconds)


def _uml(files: Path, words: str, initramfs: str, shell: int) -> list[str]:
    return [
        *("env", "LD_LIBRARY_PATH=.", "./linux.uml", "mem=1G", "seccomp=on"),
        *(f"initrd={files / initramfs}", f"vec0:transport=tap,ifname={TAP},gro=1"),
        *("con=null", "ssl=null", "ssl0=null,fd:1", f"ssl1=fd:{shell}"),
        *("console=ttyS0", "panic=-1", f"ip={_ADDRESS}", *words.split()),
    ]


def _qemu(files: Path, words: str, initramfs: str, shell: int) -> list[str]:
    return [
        *("qemu-system-x86_64", *_accelerator(), "-smp", "2", "-m", "1G"),
        *("-M", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", "vmlinuz", "-initrd", str(files / initramfs)),
        *("-append", f"console=ttyS0 panic=-1 ip=dhcp {words}"),
        *("-serial", "stdio", "-chardev", f"socket,id=shell,fd={shell}", "-serial", "chardev:shell"),
        *("-nic", "user,model=virtio-net-pci"),
    ]


def _accelerator() -> tuple[str, ...]:
    # As in tests/lab: /dev/kvm may be there and not work, so a person has to say that it does.
    if os.environ.get("LAB_KVM") == "1":
        return ("-accel", "kvm", "-cpu", "host")
    return ("-accel", "tcg,thread=multi", "-cpu", "max")


# From the start until the shell answers, if nothing else runs on the machine: seconds.
_IDLE_BOOT = {_uml: 20.0, _qemu: 120.0}
