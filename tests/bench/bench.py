#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare nbdattach with nbd-client, qemu-nbd and libnbd on this machine, side by side, and with an earlier build.

Prints ratios and their spread, with the aims beside them, and at the end the aims that were missed. The exit status
does not depend on these, because on a shared machine they are missed by chance.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
SERVERS, KERNEL = HERE.parent / "servers", HERE.parent / "kernel"
sys.path[:0] = [str(HERE), str(SERVERS)]

import before  # noqa: E402 - these live in the folders above
import contenders  # noqa: E402
import cpu_time  # noqa: E402
import imports  # noqa: E402
import openers  # noqa: E402
import watching  # noqa: E402
from figures import Row, summary, table  # noqa: E402

NO_BUILD = f"bench: this checkout has no commit {before.COMMIT}, so nothing is compared with the build before"
NO_VALGRIND = "bench: no valgrind here, so no instructions are counted: apt install valgrind"
SLOWEST, QUICKEST = "6.1", "7.2"
# Of the guest: a crowd and its outages take most of them.
GUEST_SECONDS = 10_800


def default_nbdattach() -> str | None:
    ours = REPO / ".venv/bin/nbdattach"
    return str(ours) if ours.exists() else shutil.which("nbdattach")


def kernels(options: argparse.Namespace, parts: list[str]) -> dict[str, list[str]]:
    """The parts for the guest of each kernel. The slowest one would take hours for a crowd of a thousand."""
    chosen: dict[str, list[str]] = {}
    for part in parts:
        kernel = QUICKEST if (part, options.kernel) == ("crowd", SLOWEST) else options.kernel
        chosen.setdefault(kernel, []).append(part)
    return chosen


def in_guest(
    options: argparse.Namespace, kernel: str, parts: list[str], build_before: str | None
) -> dict[str, list[Row]]:
    """The measurements of `in_guest`, by the title of the table. If one fails, those before it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        result = Path(folder, "result.json")
        done = subprocess.run(guest_command(options, kernel, parts, build_before, result), cwd=REPO)
        if done.returncode:
            print(f"bench: the guest ended with exit status {done.returncode}, so figures are missing", flush=True)
        found = json.loads(result.read_text()) if result.exists() else {}
    return {f"{title}, {kernel}": [Row.of(row) for row in rows] for title, rows in found.items()}


def guest_command(
    options: argparse.Namespace, kernel: str, parts: list[str], build_before: str | None, result: Path
) -> list[str]:
    return [
        *(sys.executable, str(HERE.parent / "lab/guest.py"), "--kernel", kernel, "--memory", "3G"),
        *("--timeout", str(options.timeout), "--out", str(result.parent)),
        *("--env", f"PYTHONPATH={SERVERS}:{KERNEL}", "--"),
        *(sys.executable, str(HERE / "in_guest.py"), "--nbdattach", options.nbdattach, "--result", str(result)),
        *("--rounds", str(options.rounds), "--seconds", str(options.seconds), "--size", options.size),
        *("--scale", str(options.scale), "--away", *map(str, options.away)),
        *(["--before", build_before] if build_before else []),
        *(["--sweep", options.sweep] if options.sweep else []),
        *(["--unix"] if options.unix else []),
        *("--only", *parts),
    ]


def here(options: argparse.Namespace, parts: list[str], build_before: str | None) -> dict[str, list[Row]]:
    """The measurements that need no guest, printed as they come."""
    ours = options.nbdattach
    found: dict[str, list[Row]] = {}
    if "cpu" in parts:
        found |= shown({"CPU time": cpu_time.measure(ours, build_before, options.cpu_rounds)})
    if "imports" in parts and imports.can_count():
        found |= shown({"Instructions": imports.measure(ours, build_before)})
    elif "imports" in parts:
        print(NO_VALGRIND, flush=True)
    if "openers" in parts:
        found |= shown({"A look for openers, CPU time": openers.measure(ours, build_before, options.cpu_rounds)})
    if "watching" in parts:
        found |= shown({"The monitor's CPU time, a second and a device": watching.measure(options.rounds)})
    return found


def shown(tables: dict[str, list[Row]]) -> dict[str, list[Row]]:
    for title, rows in tables.items():
        rounds = rows[0].rounds
        print(table(f"{title}, {rounds} round{'s' * (rounds != 1)}", rows), flush=True)
    return tables


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kernel",
        choices=("6.1", "6.12", "7.2", "6.1-qemu", "6.12-qemu", "7.3-qemu"),
        default=SLOWEST,
        help=f"of the guest; with {SLOWEST}, crowd has one of {QUICKEST}",
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu-rounds", type=int, default=21, help="of the commands that need no guest")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each piece of work of fio")
    parser.add_argument("--size", default="512M", help="of the export")
    parser.add_argument("--unix", action="store_true", help="the server in the guest on a Unix socket instead of TCP")
    parser.add_argument(
        "--sweep", choices=("sectors", "connections"), help="nbdattach against itself, in the guest only"
    )
    parser.add_argument("--only", nargs="+", choices=contenders.HERE + contenders.PARTS, help="these tables only")
    parser.add_argument("--scale", type=int, default=1024, metavar="N", help="devices at most, in crowd")
    parser.add_argument(
        "--away",
        type=float,
        nargs="+",
        default=[3, 40, 120, 600],
        metavar="SEC",
        help="lengths of an outage, in outages",
    )
    parser.add_argument("--no-guest", action="store_true", help="only what needs none")
    parser.add_argument("--timeout", type=float, default=GUEST_SECONDS, metavar="SEC", help="of the guest")
    parser.add_argument("--nbdattach", default=default_nbdattach(), metavar="PROGRAM")
    options = parser.parse_args()
    if not options.nbdattach:
        parser.error("no nbdattach in .venv/bin or on PATH: name it with --nbdattach")
    return options


def main() -> None:
    options = parse()
    parts = options.only or contenders.HERE + contenders.PARTS
    build_before = before.program(cpu_time.interpreter(options.nbdattach))
    if not build_before:
        print(NO_BUILD, flush=True)
    ours = [part for part in parts if part in contenders.HERE]
    theirs = [part for part in parts if part in contenders.PARTS and (part != "before" or build_before)]
    found = {} if options.sweep else here(options, ours, build_before)
    if not options.no_guest:
        for kernel, some in kernels(options, theirs).items():
            found |= shown(in_guest(options, kernel, some, build_before))
    print(summary(found))


if __name__ == "__main__":
    main()
