# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's message if it cannot be shown: tests/demo/demo with a script as its guest."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DIED = "demo: the guest died, which touches nothing of this machine: "
UNKNOWN = "mount: /mnt/out: fsconfig() failed: hostfs: Unknown parameter '/out'"
CONSOLE = f"""\
devtmpfs: mounted
Run /tmp/lab-1/control/init as init process
{UNKNOWN}.
       dmesg(1) may have more information after failed mount system call.
Kernel panic - not syncing: Attempted to kill init! exitcode=0x00002000
Call Trace:
 [<6071d9c4>] ? _printk+0x0/0x45
"""
OOPS = "Kernel panic - not syncing: Segfault with no mm"


class Tree:
    """A checkout with the demo; its guest is a script, and every program that it needs exists."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / ".venv/bin"
        (root / "tests").mkdir()
        shutil.copytree(ROOT / "tests/demo", root / "tests/demo")
        self.script("tests/lab/provision", "exit 0")
        for name in ("nbdattach", "python3", "nbdkit", "modprobe", "ss", "mkfs.ext4", "debugfs"):
            self.script(f".venv/bin/{name}", "exit 0")
        for name in ("dirname", "mktemp", "rm", "cat", "sed", "grep", "head", "uname", "sh", "id"):
            self.bin.joinpath(name).symlink_to(shutil.which(name) or name)

    def script(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def guest(self, status: int, console: str = "", words: str = "") -> None:
        """It is called: --timeout SECONDS --out FOLDER -- COMMAND."""
        (self.root / "console").write_text(console)
        (self.root / "words").write_text(words)
        self.script("tests/lab/guest.py", f'cat console >"$4/console.log"\ncat words >&2\nexit {status}')

    def show(self) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "TMPDIR": str(self.root)}
        command = ["/bin/sh", str(self.root / "tests/demo/demo")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def told(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error, without the file that it ends with, which must be there."""
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done
    text, console = done.stderr.rstrip("\n").split("; its console: ")
    assert Path(console).is_file()
    return text


@pytest.mark.parametrize(
    ("console", "why"),
    [
        (CONSOLE, UNKNOWN),
        (f"Run /init as init process\n{OOPS}\n", OOPS),
        (f"{OOPS}\n", OOPS),
        (CONSOLE.replace(UNKNOWN + ".\n", "").replace("       dmesg", "dmesg"), "dmesg(1) may have more information "),
    ],
)
def test_a_panic_is_one_line_with_its_cause(tree: Tree, console: str, why: str) -> None:
    tree.guest(125, console, "lab: the guest ended without a status; the end of its console:\n" + console)
    assert told(tree.show()).startswith(DIED + why)


def test_a_guest_that_cannot_be_started_says_so_in_one_line(tree: Tree) -> None:
    tree.guest(125, words="lab: cannot fetch a kernel\n")
    assert tree.show().stderr == "demo: no guest: cannot fetch a kernel\n"


def test_a_guest_that_is_too_slow_says_so_in_one_line(tree: Tree) -> None:
    tree.guest(124, CONSOLE, "lab: the guest hung\n")
    assert told(tree.show()) == "demo: the guest was not done after 110 seconds, as on a very busy machine"


@pytest.mark.parametrize("status", [0, 1, 7])
def test_the_status_is_that_of_the_show_and_nothing_is_left(tree: Tree, status: int) -> None:
    tree.guest(status)
    before = set(tree.root.iterdir())
    assert (tree.show().returncode, set(tree.root.iterdir())) == (status, before)


def test_a_missing_program_is_told_with_the_command_that_installs_it(tree: Tree) -> None:
    tree.script("tests/lab/provision", "exit 1")
    tree.guest(0)
    assert tree.show().returncode == 0  # it is offline, and has everything
    for name in ("nbdkit", "ss"):
        (tree.bin / name).unlink()
    done = tree.show()
    assert (done.returncode, done.stderr) == (
        1,
        "demo: missing here: nbdkit ss; on Debian, to install them: sudo apt install nbdkit iproute2\n",
    )


def test_no_venv_is_told_with_the_command_that_installs_it(tree: Tree) -> None:
    tree.guest(0)
    tree.script(".venv/bin/python3", "exit 1")
    said = tree.show().stderr
    assert said == "demo: missing here: venv; on Debian, to install them: sudo apt install python3-venv\n"
