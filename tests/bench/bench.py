#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare nbdattach with nbd-client, qemu-nbd and libnbd on this machine, side by side.

Prints ratios and their spread, with the aims beside them. Judges nothing, because a shared machine cannot.
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

import cpu_time  # noqa: E402 - these live in the folders above
from contenders import PARTS  # noqa: E402
from figures import Row, table  # noqa: E402


def default_nbdattach() -> str | None:
    ours = REPO / ".venv/bin/nbdattach"
    return str(ours) if ours.exists() else shutil.which("nbdattach")


def guest(options: argparse.Namespace) -> dict[str, list[Row]]:
    """The measurements of `in_guest`, by the title of the table."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        result = Path(folder, "result.json")
        done = subprocess.run(guest_command(options, result), cwd=REPO)
        if not result.exists():
            sys.exit(f"bench: the guest brought no figures (exit status {done.returncode})")
        found = json.loads(result.read_text())
    return {title: [Row.of(row) for row in rows] for title, rows in found.items()}


def guest_command(options: argparse.Namespace, result: Path) -> list[str]:
    return [
        *(sys.executable, str(HERE.parent / "lab/guest.py"), "--kernel", options.kernel, "--memory", "3G"),
        *("--timeout", str(options.timeout), "--out", str(result.parent)),
        *("--env", f"PYTHONPATH={SERVERS}:{KERNEL}", "--"),
        *(sys.executable, str(HERE / "in_guest.py"), "--nbdattach", options.nbdattach, "--result", str(result)),
        *("--rounds", str(options.rounds), "--seconds", str(options.seconds), "--size", options.size),
        *(["--sweep", options.sweep] if options.sweep else []),
        *(["--unix"] if options.unix else []),
        *(["--only", *options.only] if options.only else []),
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kernel",
        choices=("6.1", "6.12", "7.2", "6.1-qemu", "6.12-qemu", "7.3-qemu"),
        default="6.1",
        help="of the guest",
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu-rounds", type=int, default=21, help="of the commands that need no guest")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each piece of work of fio")
    parser.add_argument("--size", default="512M", help="of the export")
    parser.add_argument("--unix", action="store_true", help="the server in the guest on a Unix socket instead of TCP")
    parser.add_argument(
        "--sweep", choices=("sectors", "connections"), help="nbdattach against itself, in the guest only"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these tables of the guest, and nothing else")
    parser.add_argument("--no-guest", action="store_true", help="only what needs none")
    parser.add_argument("--timeout", type=float, default=2400, metavar="SEC", help="of the guest")
    parser.add_argument("--nbdattach", default=default_nbdattach(), metavar="PROGRAM")
    options = parser.parse_args()
    if not options.nbdattach:
        parser.error("no nbdattach in .venv/bin or on PATH: name it with --nbdattach")
    return options


def main() -> None:
    options = parse()
    if not options.sweep and not options.only:
        title = f"CPU time, {options.cpu_rounds} rounds"
        print(table(title, cpu_time.measure(options.nbdattach, options.cpu_rounds)), flush=True)
    if not options.no_guest:
        for title, rows in guest(options).items():
            print(table(f"{title}, {options.kernel}, {rows[0].rounds} rounds", rows))


if __name__ == "__main__":
    main()
