#!/usr/bin/env python3
"""Runs suites of tests on kernels and releases of Debian, each in a guest, and prints a table of how they ended.

    tests/matrix.py                         all cells of PLAN
    tests/matrix.py --kernel 7.2 --root sid --suite netlink -k test_restart     those that match

Output of each cell: build/matrix/KERNEL-ROOT-SUITE.log
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TREE / "tests/lab"))

import roots  # noqa: E402 # tests/lab has no package

LOGS = TREE / "build/matrix"
KERNELS = ("6.1", "6.12", "7.2")
_SECONDS = 5400  # for one cell, on a machine that runs several
_SUMMARY = re.compile(r"^(?=.*\d (?:passed|failed|error)).* in [\d.]+s", re.MULTILINE)


@dataclass(frozen=True)
class Suite:
    marks: str
    paths: tuple[str, ...]
    guest: tuple[str, ...] = ()  # options of guest.py
    python: str = "python3"


_IOCTL = ("--env", "NBDATTACH_DEVICE=/dev/nbd3")
_NETLINK = ("--env", "LAB_BACKEND=netlink")
_KERNEL = ("tests/kernel",)
_CONTRACT = (*_KERNEL, "tests/unit/test_fake_kernel.py")
SUITES = {
    "ioctl": Suite("not udev and not stock and not netlink", _CONTRACT, _IOCTL),
    "netlink": Suite("not udev and not stock and not ioctl", _KERNEL, _NETLINK),
    "essential-ioctl": Suite("essential and not stock and not netlink", _KERNEL, _IOCTL),
    "essential-netlink": Suite("essential and not stock and not ioctl", _KERNEL, _NETLINK),
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

    @property
    def log(self) -> Path:
        return LOGS / f"{self.kernel}-{self.root}-{self.suite}.log"


def _plan() -> list[Cell]:
    """Each release on the kernel that it has, whole; every other pair by what is essential."""
    own = dict(zip(roots.ROOTS, KERNELS, strict=True))
    whole = [Cell(own[root], root, suite) for root in roots.ROOTS for suite in ("netlink", "ioctl", "udev")]
    # These depend on the release alone: the quickest kernel runs them.
    plain = [Cell("7.2", root, suite) for root in roots.ROOTS for suite in ("servers", "unit")]
    plain.append(Cell("7.2", "sid", "unit-3.15"))
    mixed = [
        Cell(kernel, root, f"essential-{backend}")
        for kernel in KERNELS
        for root in roots.ROOTS
        for backend in ("netlink", "ioctl")
        if own[root] != kernel
    ]
    return whole + plain + mixed


def _run(cell: Cell, extra: list[str]) -> tuple[Cell, str]:
    suite = SUITES[cell.suite]
    began = time.monotonic()
    with cell.log.open("wb") as log:
        code = subprocess.run(_command(cell, suite, extra), cwd=TREE, stdout=log, stderr=log).returncode
    found = _SUMMARY.findall(cell.log.read_text(errors="replace"))
    # pytest colours nothing here; "=" frames the line where it is not quiet.
    said = found[-1].strip("= ").partition(" in ")[0] if found else f"no result, exit status {code}"
    mark = "ok" if code == 0 and found else "FAILED"
    print(f"{mark:6} {cell.kernel:5} {cell.root:9} {cell.suite:18} {said}, {time.monotonic() - began:.0f} s", flush=True)
    return cell, f"{said}" if mark == "ok" else f"**{said}**"


def _command(cell: Cell, suite: Suite, extra: list[str]) -> list[str]:
    path = f"PYTHONPATH={TREE}:{roots.SITE}"
    lab = [sys.executable, "tests/lab/guest.py", "--kernel", cell.kernel, "--root", cell.root, "--timeout", str(_SECONDS)]
    pytest = [f"/usr/bin/{suite.python}", "-m", "pytest", "-q", "--timeout", "400", "--durations", "20"]
    marks = ["-m", suite.marks] if suite.marks else []
    return [*lab, "--env", path, *suite.guest, "--", *pytest, *marks, *extra, *suite.paths]


def _table(results: dict[Cell, str]) -> str:
    suites = list(dict.fromkeys(cell.suite for cell in results))
    lines = ["| kernel | root | " + " | ".join(suites) + " |", "|---" * (len(suites) + 2) + "|"]
    for kernel, root in sorted({(cell.kernel, cell.root) for cell in results}):
        cells = [results.get(Cell(kernel, root, suite), "") for suite in suites]
        lines.append(f"| {kernel} | {root} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", choices=KERNELS)
    parser.add_argument("--root", choices=roots.ROOTS)
    parser.add_argument("--suite", choices=SUITES)
    parser.add_argument("-j", type=int, default=os.cpu_count(), metavar="N", help="guests at once")
    parser.add_argument("-k", metavar="EXPRESSION", help="as pytest's")
    options = parser.parse_args()
    wanted = (options.kernel, options.root, options.suite)
    cells = [
        cell
        for cell in _plan()
        if all(want in (None, have) for want, have in zip(wanted, (cell.kernel, cell.root, cell.suite), strict=True))
    ]
    if not cells and None not in wanted:
        cells = [Cell(*wanted)]
    for root in dict.fromkeys(cell.root for cell in cells):
        roots.root_folder(root)
    LOGS.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.j) as pool:
        results = dict(pool.map(lambda cell: _run(cell, ["-k", options.k] if options.k else []), cells))
    print(_table(results))
    return 1 if not results or any("**" in said for said in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
