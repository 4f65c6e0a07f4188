#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""In a guest: one server of the catalogue, all steps through nbdattach. Prints one line of JSON, after RESULT.

probe.py SETUP RELEASE FOLDER
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TREE = Path(__file__).resolve().parents[2]
sys.path += [str(TREE / "tests/servers")]

from server import ROOT, NotRunning, Server, in_root, within  # noqa: E402
from setups import SECONDS_TO_RETURN, SETUPS, Setup  # noqa: E402

from nbdattach.attached import memory, state  # noqa: E402
from nbdattach.device import Device  # noqa: E402

DEVICE = "/dev/nbd0"
MIB = 1 << 20
NOT_OFFERED = "not offered"
NO = "no"
_TOOL = [sys.executable, str(TREE / "tests/kernel/bin/nbdattach")]


class Refused(Exception):
    """nbdattach, or another program, said no; with its first line."""


def nbd(*arguments: str, seconds: float = 60) -> str:
    """Standard output of nbdattach. Raises `Refused`."""
    try:
        done = subprocess.run(
            [*_TOOL, *arguments], capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"no end within {seconds:g} s") from None
    if "Traceback" in done.stderr:
        raise AssertionError(done.stderr)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [done.stdout.strip()]
        raise Refused(f"exit {done.returncode}: {lines[0].removeprefix('nbdattach: ').removeprefix('error: ')}")
    return done.stdout


def program(*arguments: str, seconds: float = 60) -> str:
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise Refused(f"{arguments[0]}: no end within {seconds:g} s") from None
    if done.returncode:
        raise Refused((done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1])
    return done.stdout.strip()


class Probe:
    """One run. `row` gets a short text for each step, `seen` what the server was seen to do."""

    def __init__(self, setup: Setup, release: str, folder: Path) -> None:
        self.setup = setup
        self.row: dict[str, str] = {}
        self.seen: list[str] = []
        self.result: dict[str, Any] = {"setup": setup.name, "release": release, "row": self.row, "seen": self.seen}
        self.folder = folder
        self.data = os.urandom(MIB)
        self.waits = False
        self.formatted = 0.0  # when mkfs had ended

    # --- The steps

    def run(self) -> None:
        self.server = Server(self.setup, self.folder)
        self.result["version"] = self.server.version()
        self.server.start()
        self.look()
        if self.attach():
            self.identify()
            self.input_and_output()
            self.resize()
            self.second_client()
            self.be_remembered()
            self.loss("stop", self.polite_stop)
            self.loss("kill", self.killed)
            self.detach()
        self.encrypted()

    def target(self) -> str:
        if isinstance(self.server.place, str):
            return f"nbd+unix:///{self.setup.export}?socket={ROOT}{self.server.place}"
        scheme = "nbds" if self.server.tls else "nbd"
        return f"{scheme}://127.0.0.1/{self.setup.export}"

    def bare_target(self) -> str:
        """Without an export."""
        return self.target().replace(f"/{self.setup.export}", "/") if self.setup.export else self.target()

    def look(self) -> None:
        """list, info, check; each may end the server, or use up a client."""
        self.step("list", lambda: self.listed())
        self.step("info", lambda: self.described())
        self.step("check", lambda: self.read_without_driver())

    def step(self, name: str, act: Any) -> None:
        try:
            self.row[name] = act()
        except Refused as error:
            self.row[name] = f"{NO}: {error}"
        self.revive(name)

    def revive(self, name: str) -> None:
        """Starts the server once more if the step has ended it."""
        if not within(0.5, lambda: self.server.listener() is None):
            return
        self.seen.append(f"ends after the client of `{name}`")
        self.server.start()

    def listed(self) -> str:
        found = json.loads(nbd("list", "--json", *self.ours(), self.bare_target()))["exports"]
        names = [one["name"] for one in found]
        if self.setup.export and self.setup.export not in names:
            self.seen.append(f"does not list the export '{self.setup.export}'")
        return f"{len(names)}" if len(names) != 1 else "yes"

    def described(self) -> str:
        self.info = json.loads(nbd("info", "--json", *self.ours(), self.target()))
        self.result["size"] = self.info["size"]
        self.result["flags"] = self.info["flags"]
        self.result["protocol"] = self.info["protocol"]
        self.result["block_size"] = self.info["block_size"]
        debug = subprocess.run(
            [*_TOOL, "info", "--debug", *self.ours(), self.target()], capture_output=True, text=True
        ).stderr
        self.result["debug"] = [line.partition("debug: ")[2] for line in debug.splitlines() if "debug: " in line]
        return "yes"

    def read_without_driver(self) -> str:
        nbd("check", *self.ours(), self.target())
        return "yes"

    def ours(self) -> list[str]:
        """With a certificate of ours, for servers that ask for one."""
        files = (("--tls-ca", "ca-cert"), ("--tls-cert", "client-cert"), ("--tls-key", "client-key"))
        words = [word for option, file in files for word in (option, f"{ROOT}/srv/tls/{file}.pem")]
        return words if self.server.tls else []

    def attach(self) -> bool:
        arguments = [*self.ours(), *self.setup.connect, self.target(), DEVICE]
        try:
            nbd("connect", *arguments)
        except Refused as error:
            self.row["connect"] = f"{NO}: {error}"
            return False
        self.row["connect"] = "yes"
        return True

    def flags(self) -> list[str]:
        return list(self.result.get("flags", ()))

    def offers(self, flag: str) -> bool:
        return flag in self.flags()

    @property
    def read_only(self) -> bool:
        return Path("/sys/block/nbd0/ro").read_text().strip() == "1"

    def size(self) -> int:
        return int(Path("/sys/block/nbd0/size").read_text()) * 512

    def place(self) -> int:
        """Where data is written: at 2 MiB, or at the begin of a small disk."""
        return 2 * MIB if self.size() >= 4 * MIB else 0

    def length(self) -> int:
        return min(MIB, self.size())

    def input_and_output(self) -> None:
        for name, act in (
            ("write", self.written),
            ("flush", self.flushed),
            ("trim", self.trimmed),
            ("zero", self.zeroed),
        ):
            try:
                self.row[name] = act()
            except (Refused, OSError) as error:
                self.row[name] = f"{NO}: {error.strerror if isinstance(error, OSError) else error}"

    def write(self, place: int | None = None) -> None:
        with open(DEVICE, "r+b", buffering=0) as device:
            device.seek(self.place() if place is None else place)
            device.write(self.data[: self.length()])
            os.fsync(device.fileno())

    def read(self, place: int | None = None) -> bytes:
        fd = os.open(DEVICE, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return os.pread(fd, self.length(), self.place() if place is None else place)
        finally:
            os.close(fd)

    def written(self) -> str:
        """Near the begin, and at the end."""
        if self.read_only:
            self.read()
            return "read-only"
        for name, place in (("", self.place()), (" at the end", self.size() - self.length())):
            self.write(place)
            program("blockdev", "--flushbufs", DEVICE)
            found = self.read(place)
            if found != self.data[: self.length()]:
                return f"accepted, and {'other data' if any(found) else 'zeroes'} read back{name}"
        return "yes"

    def flushed(self) -> str:
        if self.read_only:
            return "read-only"
        if not self.offers("send_flush"):
            return NOT_OFFERED
        self.write()
        return "yes"

    def trimmed(self) -> str:
        if not self.offers("send_trim"):
            return NOT_OFFERED
        self.write()
        before = self.blocks()
        program("blkdiscard", "-o", str(self.place()), "-l", str(self.length()), DEVICE)
        if before is None:
            return "yes"
        program("sync")
        freed = before - (self.blocks() or 0)
        return "yes, frees space" if freed > 0 else "yes, frees nothing"

    def blocks(self) -> int | None:
        return (ROOT / self.setup.disk[1:]).stat().st_blocks if self.setup.disk else None

    def zeroed(self) -> str:
        if self.read_only:
            return "read-only"
        self.write()
        program("blkdiscard", "-z", "-o", str(self.place()), "-l", str(self.length()), DEVICE)
        program("blockdev", "--flushbufs", DEVICE)
        if any(self.read()):
            return "accepted, and old data read back"
        return "yes" if self.offers("send_write_zeroes") else "yes, by writes"

    def resize(self) -> None:
        if not self.setup.grow:
            return
        before = self.size()
        in_root(self.setup.grow)
        done = subprocess.run([*_TOOL, "resize", DEVICE], capture_output=True, text=True, timeout=60)
        if self.size() > before:
            self.row["resize"] = "yes"
            return
        said = (done.stderr or done.stdout).strip().splitlines() or [""]
        self.row["resize"] = f"{NO}: exit {done.returncode}: {said[0].removeprefix('nbdattach: ')}"
        in_root("truncate -s 16M /srv/disk")  # a server that is started again has the size that was attached

    def second_client(self) -> None:
        try:
            nbd("check", "--connect-timeout", "5", *self.ours(), self.target())
            self.row["second client"] = "yes"
        except Refused as error:
            self.row["second client"] = f"{NO}: {error}"

    def identify(self) -> None:
        """A file system, by which the monitor knows the disk again."""
        if not self.read_only and self.size() >= 4 * MIB:
            subprocess.run(["mkfs.ext4", "-q", "-F", DEVICE], capture_output=True, timeout=60)
            program("sync")
            self.formatted = time.time()

    def be_remembered(self) -> None:
        """Until the monitor knows the file system: it looks at the device some seconds after a program wrote to it."""
        content = Path(f"{state.path(Device(0))}{memory.CONTENT}")
        within(15, lambda: content.exists() and content.stat().st_mtime > self.formatted)
        fd = os.open(DEVICE, os.O_RDONLY)
        self.head = os.pread(fd, 4096, 0)
        os.close(fd)

    def loss(self, name: str, act: Any) -> None:
        if self.waits:
            self.row[name] = self.row["stop"].rpartition("killed, ")[2]
            return
        try:
            self.row[name] = act()
        except (Refused, NotRunning) as error:
            self.row[name] = f"{NO}: {error}"

    def polite_stop(self) -> str:
        if not self.server.stop():
            listens = "" if self.server.listener() is None else ", and listens"
            self.server.kill()
            return f"stays for its client{listens}; killed, {self.goes_on()}"
        return self.goes_on()

    def killed(self) -> str:
        self.server.kill()
        return self.goes_on()

    def goes_on(self) -> str:
        """A request is under way when the server is back."""
        reader = subprocess.Popen(
            ["dd", f"if={DEVICE}", "iflag=direct", "bs=4096", "count=1", "status=none"], stdout=subprocess.PIPE
        )
        time.sleep(0.5)  # it may take so long to be sent
        self.server.start()
        began = time.monotonic()
        try:
            found, _ = reader.communicate(timeout=SECONDS_TO_RETURN)
        except subprocess.TimeoutExpired:
            reader.kill()
            self.waits = True
            return f"waits: {self.reason()}"
        took = time.monotonic() - began
        if took > 8:
            self.seen.append(f"the device goes on {took:.0f} s after the server is back")
        if reader.returncode:
            return f"{NO}: a request fails"
        return "goes on" if found[: len(self.head)] == self.head else "goes on with other data"

    def reason(self) -> str:
        try:
            found = json.loads(nbd("status", "--json", DEVICE, seconds=20))
        except Refused as error:
            return str(error)
        self.result["status"] = found
        matched = re.search(r'"error": ("(?:[^"\\\\]|\\\\.)+")', json.dumps(found))
        return str(json.loads(matched[1])) if matched else "no reason in status"

    def detach(self) -> None:
        try:
            nbd("disconnect", *(["--force"] if self.waits else []), DEVICE, seconds=100)
        except Refused as error:
            self.row["disconnect"] = f"{NO}: {error}"
        else:
            self.row["disconnect"] = "yes, --force" if self.waits else "yes"

    def encrypted(self) -> None:
        if not self.setup.tls:
            return
        if self.server.listener():
            self.server.kill()
        self.server.tls = True
        try:
            self.server.start()
            json.loads(nbd("info", "--json", *self.ours(), self.target()))
            nbd("connect", *self.ours(), self.target(), DEVICE)
            self.write()
            program("blockdev", "--flushbufs", DEVICE)
            same = self.read() == self.data[: self.length()]
            (shown,) = json.loads(nbd("status", "--json", DEVICE))
            self.result["tls_status"] = shown
            nbd("disconnect", DEVICE)
        except (Refused, NotRunning, OSError) as error:
            self.row["TLS"] = f"{NO}: {error}"
            return
        self.row["TLS"] = "yes" if same else "other data read back"


def main() -> None:
    name, release, folder = sys.argv[1:]
    (setup,) = [one for one in SETUPS if one.name == name]
    probe = Probe(setup, release, Path(folder))
    try:
        probe.run()
    except NotRunning as error:
        probe.result["failed"] = str(error)
    print("RESULT", json.dumps(probe.result), flush=True)


if __name__ == "__main__":
    main()
