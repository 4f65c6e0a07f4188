#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs suites of tests on kernels and releases of Debian, each in a guest, and prints a table of the results.

    tests/matrix.py --kernel 7.2 --root here --suite netlink -k test_restart    one cell, or one test of it
    tests/matrix.py --rare                                                      all cells of the plan, with rare tests

`--root here` is this machine's own root with the checkout's .venv. Without an option each cell of the plan that matches
the others is run. Output of each cell: build/matrix/KERNEL-ROOT-SUITE.log
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TREE / "tests/lab"))

import roots  # noqa: E402 # tests/lab is no package

LOGS = TREE / "build/matrix"
HERE = "here"
KERNELS = ("6.1", "6.12", "7.2")
EMULATED = ("6.12-qemu", "7.3-qemu")
_SECONDS = 5400  # for one cell, on a machine that runs several
_GUEST_DIED = 125  # as guest.py has it
# Before the tests, in the guest: a release of Debian may have moved on to another kernel than the intended one.
_TOLD = ("sh", "-c", 'echo "uname -r: $(uname -r)"; exec "$@"', "sh")
_RELEASE = re.compile(r"^uname -r: (\S+)$", re.MULTILINE)
_TAIL = 150  # lines of a failed cell's output
# The last line of pytest; "=" frames it if pytest is not quiet.
_SUMMARY = re.compile(r"^=* ?(.*\d (?:passed|failed|errors?).*) in [\d.]+s", re.MULTILINE)

# The registers come before the line with the word panic, and the trace after it.
_PANIC_IN_FORK = re.compile(r"^RIP: \S+:flush_tlb_mm\+.*\n(?:.*\n){1,12}?Kernel panic", re.MULTILINE)


@dataclass(frozen=True)
class Suite:
    marks: str
    paths: tuple[str, ...]
    guest: tuple[str, ...] = ()  # options of guest.py
    python: str = "python3"


_KERNEL = ("tests/kernel",)
# The second path holds the fake kernel of the unit tests against the real one.
_CONTRACT = (*_KERNEL, "tests/unit/kernel/test_fake_kernel.py")
_IOCTL = ("--env", "LAB_BACKEND=ioctl", "--env", "NBDATTACH_DEVICE=/dev/nbd3")
_NETLINK = ("--env", "LAB_BACKEND=netlink")
SUITES = {
    "ioctl": Suite("not udev and not netlink", _CONTRACT, _IOCTL),
    # Without those that the netlink suite has run already, by the other backend.
    "ioctl-only": Suite("(ioctl or essential) and not udev and not netlink", _CONTRACT, _IOCTL),
    "netlink": Suite("not udev and not ioctl", _KERNEL, _NETLINK),
    "essential-ioctl": Suite("essential and not netlink", _KERNEL, _IOCTL),
    "essential-ioctl-only": Suite("essential and ioctl", _KERNEL, _IOCTL),
    "essential-netlink": Suite("essential and not ioctl", _KERNEL, _NETLINK),
    "udev": Suite("udev", _KERNEL, ("--udev",)),
    "servers": Suite("", ("tests/servers",)),
    "unit": Suite("", ("tests/unit",)),
    "unit-3.15": Suite("", ("tests/unit",), python="python3.15"),
}


@dataclass(frozen=True)
class Cell:
    kernel: str
    root: str
    suite: str
    share: str = "1of1"

    def __str__(self) -> str:
        share = "" if self.share == "1of1" else f"-{self.share}"
        return f"{self.kernel}-{self.root}-{self.suite}{share}"

    @property
    def log(self) -> Path:
        return LOGS / f"{self}.log"


@dataclass(frozen=True)
class Result:
    good: bool
    summary: str
    release: str  # of the kernel, as the guest's uname -r has it


def plan() -> list[Cell]:
    """Each release on its own kernel, whole; every other pair with the essential tests."""
    own = dict(zip(roots.ROOTS, KERNELS, strict=True))
    whole = [
        Cell(own[root], root, suite, share)
        for root in roots.ROOTS
        for suite in ("netlink", "ioctl", "udev")
        for share in _shares(own[root], suite)
    ]
    # These depend on the release alone: the quickest kernel runs them.
    plain = [Cell("7.2", root, suite) for root in roots.ROOTS for suite in ("servers", "unit")]
    plain.append(Cell("7.2", "sid", "unit-3.15"))
    essential = ("essential-netlink", "essential-ioctl")
    pairs = [(kernel, root) for kernel in KERNELS for root in roots.ROOTS if own[root] != kernel]
    mixed = [Cell(kernel, root, suite) for kernel, root in pairs for suite in essential]
    stock = [Cell(kernel, HERE, suite) for kernel in EMULATED for suite in essential]
    return stock + whole + plain + mixed


def _shares(kernel: str, suite: str) -> list[str]:
    """A guest that may die (`_dies_of_itself`) runs a share, so that little has to be repeated."""
    count = 4 if kernel == "6.12" and suite != "udev" else 1
    return [f"{number}of{count}" for number in range(1, count + 1)]


def run(cell: Cell, rare: bool, extra: list[str]) -> Result:
    began, used = time.monotonic(), _processor_seconds()
    code, output = _attempt(cell, rare, extra)
    note = ""
    if code == _GUEST_DIED and died_in_fork(cell.kernel, output):
        print(f"once more: {cell}: the guest's kernel died in fork, as user-mode Linux 6.12 does at times", flush=True)
        note = " (second try)"
        code, output = _attempt(cell, rare, extra)
    found = _SUMMARY.findall(output)
    summary = (found[-1] if found else f"no result, exit status {code}") + note
    release = _RELEASE.search(output)
    result = Result(code == 0 and bool(found), summary, release[1] if release else "unknown")
    if not result.good:
        print(*output.splitlines()[-_TAIL:], sep="\n")
    verdict = "ok" if result.good else "FAILED"
    took, used = time.monotonic() - began, _processor_seconds() - used
    print(f"{verdict}: {cell}: {result.summary} in {took:.0f} s, with {used:.0f} s of CPU time", flush=True)
    return result


def _processor_seconds() -> float:
    """Of all guests that have ended: what a busy machine makes longer is not in it."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def died_in_fork(kernel: str, output: str) -> bool:
    """Whether this is the known fault of user-mode Linux 6.12.113 on a busy machine, which is not in the driver."""
    panic = _PANIC_IN_FORK.search(output)
    return kernel == "6.12" and panic is not None and "copy_process" in output[panic.end() :]


def _attempt(cell: Cell, rare: bool, extra: list[str]) -> tuple[int, str]:
    """Exit status and output."""
    with cell.log.open("wb") as log:
        code = subprocess.run(_command(cell, rare, extra), cwd=TREE, stdout=log, stderr=log).returncode
    return code, cell.log.read_text(errors="replace")


def _command(cell: Cell, rare: bool, extra: list[str]) -> list[str]:
    suite = SUITES[cell.suite]
    lab = [sys.executable, "tests/lab/guest.py", "--kernel", cell.kernel, "--timeout", str(_SECONDS), *suite.guest]
    lab += ["--env", f"LAB_SHARE={cell.share}", *(["--env", "NBDATTACH_EXAMPLES=all"] if rare else [])]
    if cell.root == HERE:
        python = ".venv/bin/python"
    else:
        lab += ["--root", cell.root, "--env", f"PYTHONPATH={TREE}:{roots.SITE}"]
        python = f"/usr/bin/{suite.python}"
    marks = [suite.marks, "" if rare else "not rare", "not loop" if cell.kernel == "6.1" else ""]
    expression = " and ".join(f"({mark})" for mark in marks if mark)
    limit = "400" if cell.kernel in EMULATED else "180"
    pytest = [python, "-m", "pytest", "-q", "--timeout", limit, "--durations", "30", "--durations-min", "5"]
    return [*lab, "--", *_TOLD, *pytest, *(["-m", expression] if expression else []), *extra, *suite.paths]


def table(results: dict[Cell, Result]) -> str:
    """In Markdown: a line for each kernel and root, a column for each suite."""
    suites = list(dict.fromkeys(cell.suite for cell in results))
    lines = ["| kernel | root | " + " | ".join(suites) + " |", "|---" * (len(suites) + 2) + "|"]
    for kernel, root in sorted({(cell.kernel, cell.root) for cell in results}):
        row = [
            [one for cell, one in results.items() if (cell.kernel, cell.root, cell.suite) == (kernel, root, suite)]
            for suite in suites
        ]
        shown = [" + ".join(one.summary if one.good else f"**{one.summary}**" for one in shares) for shares in row]
        releases = ", ".join(sorted({one.release for shares in row for one in shares}))
        lines.append(f"| {kernel} ({releases}) | {root} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def chosen(options: argparse.Namespace) -> list[Cell]:
    """One cell if all options are given, the matching ones of the plan otherwise."""
    if options.kernel and options.root and options.suite:
        return [Cell(options.kernel, options.root, options.suite, options.share)]
    wanted = (options.kernel, options.root, options.suite)
    return [
        cell
        for cell in plan()
        if all(want in (None, have) for want, have in zip(wanted, (cell.kernel, cell.root, cell.suite), strict=True))
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", choices=KERNELS + EMULATED)
    parser.add_argument("--root", choices=(HERE, *roots.ROOTS))
    parser.add_argument("--suite", choices=SUITES)
    parser.add_argument("--share", default="1of1", metavar="KofN", help="of one cell: only the K-th of N shares")
    parser.add_argument("--rare", action="store_true", help="also the tests and examples that `make test` leaves out")
    parser.add_argument("-j", type=int, default=3, metavar="N", help="guests at once; they wait more than they compute")
    parser.add_argument("-k", metavar="EXPRESSION", help="as pytest's")
    return parser.parse_args()


def main() -> int:
    options = parse()
    cells = chosen(options)
    for root in dict.fromkeys(cell.root for cell in cells if cell.root != HERE):
        roots.root_folder(root)
    LOGS.mkdir(parents=True, exist_ok=True)
    extra = ["-k", options.k] if options.k else []
    with ThreadPoolExecutor(options.j) as pool:
        results = dict(zip(cells, pool.map(lambda cell: run(cell, options.rare, extra), cells), strict=True))
    if len(cells) > 1:
        print(table(results))
    return 0 if results and all(result.good for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
