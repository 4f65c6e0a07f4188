# SPDX-License-Identifier: GPL-2.0-or-later
"""The leftovers of a test: devices, processes and files of ours; and how to clear them away."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from nbdattach.attached import status
from nbdattach.host import procfs
from nbdattach.host.procfs import LOOK
from nbdattach.kernel import netlink, sysfs


def spoilt() -> list[str]:
    """Devices that still promise WRITE_ZEROES: from 6.12 to 7.2 the driver keeps it from another tool's attachment."""
    limits = Path("/sys/block").glob("nbd*/queue/write_zeroes_max_bytes")
    return [str(limit.parents[1]) for limit in limits if int(limit.read_text())]


def clear_away() -> None:
    """So that one failure causes no others."""
    subprocess.run(["umount", "/mnt"], capture_output=True)
    for pid, _ in workers():
        os.kill(pid, signal.SIGKILL)
    with netlink.Family() as family:
        for one in status.all_attached():
            family.disconnect(one.index)
    for device in sysfs.devices():
        if sysfs.Kernel(device).partitions:
            subprocess.run(["partx", "--delete", device.path], capture_output=True)
    subprocess.run("rm -rf /run/nbdattach/*; pkill -x qemu-nbd", shell=True)


def leftovers() -> list[str]:
    """Everything that would not exist if nbdattach had never run."""
    no_monitor()
    left = beside_the_monitor()
    left += [f"process {pid}: monitor" for pid in monitors()]
    return left + [f"file {name}" for name in files() if name == "monitor"]


def beside_the_monitor() -> list[str]:
    """Everything that would not exist if nothing were attached and no command ran; the monitor may run on."""
    left = [str(one) for one in status.all_attached()]
    left += [f"{device.path} has a size" for device in sysfs.devices() if sysfs.Kernel(device).size]
    left += [f"{device.path} has partitions" for device in sysfs.devices() if sysfs.Kernel(device).partitions]
    left += [f"process {pid}: a server" for pid in servers_of_images()]
    left += [f"process {pid}: {line}" for pid, line in workers() if not _is_monitor(line)]
    return left + [f"file {name}" for name in files() if name not in ("lock", "monitor")]


def servers_of_images() -> list[int]:
    """Process ids of the servers that nbdattach has started for images."""
    found = []
    for pid in procfs.pids():
        with contextlib.suppress(OSError):
            if _command_line(pid).startswith(("/usr/bin/qemu-nbd --persistent", "/usr/bin/nbdkit --foreground")):
                found.append(pid)
    return found


def no_monitor() -> bool:
    """Whether none runs; it is told to end, because it outlives attachments."""
    for pid in monitors():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    return not monitors() and "monitor" not in files()


def files() -> list[str]:
    """The files in /run/nbdattach."""
    return os.listdir("/run/nbdattach") if os.path.isdir("/run/nbdattach") else []


# Names of copies of a command.
_COPIES = ("nbdattach-guard", "nbdattach-flush")


def workers() -> list[tuple[int, str]]:
    """Worker processes of ours, with guards and flushes, relays, and monitors."""
    return [(pid, line) for pid, line in _processes() if _is_helper(line) or is_relay(line) or _is_monitor(line)]


def _is_helper(line: str) -> bool:
    """A worker, a guard, a flush, the keeper of a server, or a process that tidies up."""
    return "from nbdattach.kernel." in line or "from nbdattach.own_server." in line or line in _COPIES


def is_relay(line: str) -> bool:
    """Whether it is one, by its command line."""
    return "from nbdattach.relay.process" in line


def monitors() -> list[int]:
    """Process ids of our monitors."""
    return [pid for pid, line in _processes() if _is_monitor(line)]


def _is_monitor(line: str) -> bool:
    return "from nbdattach.monitor.service" in line or "nbdattach monitor" in line


def _processes() -> list[tuple[int, str]]:
    """Processes of nbdattach, by their command lines; not the copies of a monitor that read a disk."""
    found = []
    for pid in procfs.pids():
        try:
            line = _command_line(pid)
            called, _, numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
            # It has its name a moment after its start.
            copied = next((one for one in _COPIES if one in called), "")
            is_copy = LOOK in called or (_is_monitor(line) and line == _command_line(int(numbers.split()[1])))
        except OSError:
            continue
        if copied or ("nbdattach" in line and not is_copy):
            found.append((pid, copied or line))
    return found


def _command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
