"""A machine without a disk of its own, in QEMU, and the server that has its root file system. Knows no test."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

# Pure emulation, on a machine that has other work: seconds.
BOOT = 400.0
ANSWER = 120.0
POWER_OFF = 120.0
_POLL = 0.1


class Server:
    """nbdkit with one image, at a port of its own that stays the same over restarts."""

    def __init__(self, image: Path, *, tls: Path | None = None) -> None:
        self.image = image
        self.log = image.with_suffix(".requests")
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def start(self) -> None:
        words = ["nbdkit", "-f", "-p", str(self.port), "--filter=log"]
        if self._tls:
            words += ["--tls=require", f"--tls-certificates={self._tls}"]
        words += ["file", str(self.image), f"logfile={self.log}", "logappend=true"]
        self._process = subprocess.Popen(words)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert time.monotonic() < deadline, "nbdkit does not listen"
                time.sleep(_POLL)
            else:
                return

    def kill(self) -> None:
        """In the hardest way: nothing is said to anybody."""
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

    def __init__(self, folder: Path, files: Path, words: str, initramfs: str) -> None:
        self._console = folder / "console.log"
        self._console.unlink(missing_ok=True)
        place = folder / "shell"
        place.unlink(missing_ok=True)
        self._count = 0
        self._heard = b""
        self._process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", *_accelerator(), "-smp", "2", "-m", "1G"),
                *("-M", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
                *("-kernel", str(files / "vmlinuz"), "-initrd", str(files / initramfs)),
                *("-append", f"console=ttyS0 panic=-1 ip=dhcp {words}"),
                *("-chardev", f"file,id=console,path={self._console}", "-serial", "chardev:console"),
                *("-chardev", f"socket,id=shell,path={place},server=on,wait=off", "-serial", "chardev:shell"),
                *("-nic", "user,model=virtio-net-pci"),
            ],
            stdin=subprocess.DEVNULL,
        )
        self._shell = socket.socket(socket.AF_UNIX)
        self._connect(str(place))

    def _connect(self, place: str) -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                self._shell.connect(place)
            except OSError:
                assert time.monotonic() < deadline, "QEMU does not start"
                time.sleep(_POLL)
            else:
                return

    @property
    def console(self) -> str:
        return self._console.read_text(errors="replace")

    def wait_until_up(self) -> None:
        """Its shell listens then."""
        self._hear_until(b"READY\n", BOOT, "booted")
        self._heard = b""

    def wait_until_off(self) -> None:
        self._process.wait(BOOT)

    def do(self, command: str, seconds: float = ANSWER) -> str:
        """What the command prints; it has to succeed."""
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

    def power_off(self) -> float:
        """By systemctl; how many seconds it took."""
        self._shell.sendall(b"systemctl poweroff\n")
        began = time.monotonic()
        self._process.wait(POWER_OFF)
        return time.monotonic() - began

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._shell.close()


def _accelerator() -> tuple[str, ...]:
    # As in tests/lab: /dev/kvm may be there and not work, so a person has to say that it does.
    if os.environ.get("LAB_KVM") == "1":
        return ("-accel", "kvm", "-cpu", "host")
    return ("-accel", "tcg,thread=multi", "-cpu", "max")
