# SPDX-License-Identifier: GPL-2.0-or-later
"""What connect and disconnect cost, in counts: modules, processes, files of /proc and /sys. Times are for the bench."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from servers import Server, nbdkit
from tool import BACKEND, attached

pytestmark = [pytest.mark.any_monitor, pytest.mark.netlink]

# Devices that come, files that a command may read more then, and files of each device until one is found free.
MORE, A_FEW, OF_EACH = 11, 8, 6

# Runs a command line and leaves what it did in a file.
COUNTED = """
import json, os, sys
_, result, *words = sys.argv
files, programs, copies = [], [], []
def note(event, arguments):
    if event == "open" and str(arguments[0]).startswith(("/proc/", "/sys/")):
        files.append(arguments[0])
    elif event in ("os.listdir", "os.scandir") and str(arguments[0]).startswith(("/proc", "/sys")):
        files.append(arguments[0])
    elif event in ("subprocess.Popen", "os.posix_spawn", "os.exec"):
        programs.append(str(arguments[0]))
    elif event == "os.fork":
        copies.append(event)
sys.addaudithook(note)
from nbdattach.cli.main import run
code = run(words)
found = {"files": [str(one) for one in files], "programs": programs, "copies": len(copies), "modules": [*sys.modules]}
with open(result, "w") as file:
    json.dump(found, file)
sys.exit(code)
"""
# Of all that a command might load: what takes longer than the command itself.
HEAVY = {"asyncio", "pyroute2", "ssl", "subprocess", "logging", "multiprocessing", "email"}
# Modules that an attach needs only to name the users of a device, or to serve an image.
TO_REFUSE = {"nbdattach.attached.users", "nbdattach.attached.status", "nbdattach.own_server.kept"}


def cost(folder: Path, *words: str) -> dict[str, Any]:
    """Of one command, with what it prints."""
    result = folder / "result"
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, result, *words], check=True, stdout=subprocess.PIPE, text=True, timeout=240
    )
    return {**json.loads(result.read_text()), "says": done.stdout.strip()}


def connect_and_disconnect(folder: Path, server: Server, *device: str) -> list[dict[str, Any]]:
    words = ["connect", "--backend", BACKEND, "--shared", "--tag", "counted", server.uri]
    attach = cost(folder, *words, *device)
    return [attach, cost(folder, "disconnect", attach["says"])]


def test_a_command_loads_no_library_for_netlink_and_starts_no_program(tmp_path: Path) -> None:
    with nbdkit("memory", "1M") as server, attached(server.uri, "nbd0", tag="other"):
        attach, detach = connect_and_disconnect(tmp_path, server, "nbd1")
    for one in (attach, detach):
        assert (one["programs"], HEAVY & {*one["modules"]}) == ([], set())
    assert TO_REFUSE & {*attach["modules"]} == set()
    # The guard. To detach: one opens the device for us, one flushes, one writes dirty pages and looks for new ones.
    assert (attach["copies"], detach["copies"]) == (1, 3)


def test_what_a_command_reads_depends_little_on_the_number_of_devices(tmp_path: Path) -> None:
    def read() -> dict[str, int]:
        """Files of each command."""
        named = connect_and_disconnect(tmp_path, server, "nbd20")
        free = connect_and_disconnect(tmp_path, server)
        names = ("attach", "detach", "attach a free one", "detach that")
        return {name: len(one["files"]) for name, one in zip(names, [*named, *free], strict=True)}

    with nbdkit("memory", "1M") as server, contextlib.ExitStack() as stack:
        stack.enter_context(attached(server.uri, "nbd0", tag="tag0"))
        few = read()
        for number in range(1, MORE + 1):
            stack.enter_context(attached(server.uri, f"nbd{number}", tag=f"tag{number}"))
        grown = {name: files - few[name] for name, files in read().items()}
    print(few, grown)
    most = {**dict.fromkeys(few, A_FEW), "attach a free one": A_FEW + MORE * OF_EACH}
    assert {name: files for name, files in grown.items() if files > most[name]} == {}
