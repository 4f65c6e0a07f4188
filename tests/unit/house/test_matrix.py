# SPDX-License-Identifier: GPL-2.0-or-later
"""tests/matrix.py: the results that it counts as passed, and the suites that it runs a second time."""

from __future__ import annotations

import importlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.once

TESTS = Path(__file__).resolve().parents[2]
# The end of a console of 6.12.113, shortened.
DIED_IN_FORK = """\
.............lab: the guest ended without a status; the end of its console:
block nbd0: shutting down sockets
nbdattach: nbd0: no longer attached

Modules linked in: ipv6 crc_ccitt nbd overlay
Pid: 1681, comm: nbdkit Not tainted 6.12.113
RIP: 0033:flush_tlb_mm+0x4b/0x87
RSP: 000000007320ba40  EFLAGS: 00010206
R13: 000000007320bb88 R14: 000000006015bf11 R15: 0000000000000000
Kernel panic - not syncing: Kernel mode fault at addr 0x40e, ip 0x6002fc13
Call Trace:
 [<6015f18a>] tlb_flush+0x19/0x5e
 [<6004c3a4>] mmput+0x15/0x18
 [<6004d97d>] copy_process+0x123f/0x1e61
 [<6004e683>] kernel_clone+0x98/0x237
"""
PASSED = "uname -r: 7.2.13\n.... [100%]\n4 passed, 11 deselected in 6.65s\n"


@pytest.fixture(scope="module")
def matrix() -> Iterator[ModuleType]:
    before = list(sys.path)
    sys.path.insert(0, str(TESTS))
    yield importlib.import_module("matrix")
    sys.path[:] = before


def test_release_is_said_to_be_tested_only_with_kernels_that_it_is_tested_with(matrix: ModuleType) -> None:
    rows = re.findall(r"^\| (12|13|sid) \| ([^|]+) \|", (TESTS.parent / "README.md").read_text(), re.MULTILINE)
    roots = {"12": "bookworm", "13": "trixie", "sid": "sid"}
    said = {(kernel, roots[release]) for release, kernels in rows for kernel in re.findall(r"\d\.\d+", kernels)}
    assert len(said) >= 3
    assert said <= {(cell.kernel.removesuffix("-qemu"), cell.root) for cell in matrix.plan()}


class Guests:
    """Answers in place of the guests: one exit status and output for each attempt."""

    def __init__(self, *answers: tuple[int, str]):
        self.answers = list(answers)

    def attempt(self, cell: object, rare: bool, extra: list[str]) -> tuple[int, str]:
        return self.answers.pop(0)


def ended(matrix: ModuleType, monkeypatch: pytest.MonkeyPatch, guests: Guests, kernel: str = "7.2") -> tuple[bool, str]:
    """Verdict and text of a cell; each guest was asked."""
    monkeypatch.setattr(matrix, "_attempt", guests.attempt)
    result = matrix.run(matrix.Cell(kernel, "here", "netlink"), False, [])
    assert guests.answers == []
    return result.good, result.summary


def test_death_in_fork_of_612_gets_a_second_try_and_the_table_says_so(
    matrix: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests = Guests((125, DIED_IN_FORK), (0, PASSED))
    assert ended(matrix, monkeypatch, guests, "6.12") == (True, "4 passed, 11 deselected (second try)")


def test_table_shows_the_kernel_that_ran_and_not_only_the_one_that_was_asked_for(
    matrix: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite of Debian that a kernel comes from may have moved on."""
    cell = matrix.Cell("7.2", "sid", "netlink")
    monkeypatch.setattr(matrix, "_attempt", Guests((0, PASSED.replace("7.2.13", "7.3.1"))).attempt)
    assert "| 7.2 (7.3.1) | sid | 4 passed, 11 deselected |" in matrix.table({cell: matrix.run(cell, False, [])})


def test_guest_tells_its_kernel_before_it_runs_the_tests(matrix: ModuleType) -> None:
    command = matrix._command(matrix.Cell("7.2", "here", "netlink"), False, [])
    words = command[command.index("--") + 1 :]
    words[4:] = ["echo", "the tests"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert said == f"uname -r: {platform.release()}\nthe tests\n"


@pytest.mark.parametrize(
    ("kernel", "console"),
    [
        ("7.2", DIED_IN_FORK),
        ("6.1", DIED_IN_FORK),
        ("6.12", DIED_IN_FORK.replace("flush_tlb_mm", "blk_mq_free_request")),
        ("6.12", DIED_IN_FORK.replace("copy_process", "nbd_queue_rq")),
        ("6.12", DIED_IN_FORK.replace("Kernel panic", "nbd0: lost\n" * 20 + "Kernel panic")),
        ("6.12", "Kernel panic - not syncing: Fatal exception in interrupt\n"),
    ],
)
def test_other_panic_is_a_failure_at_once(
    matrix: ModuleType, monkeypatch: pytest.MonkeyPatch, kernel: str, console: str
) -> None:
    assert ended(matrix, monkeypatch, Guests((125, console)), kernel) == (False, "no result, exit status 125")
