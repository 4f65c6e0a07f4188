# SPDX-License-Identifier: GPL-2.0-or-later
"""The data path: fio on several attached devices, section by section in one process."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass

# gtod_reduce: without it fio spends its time asking for the time, which is slow in a guest.
COMMON = ["--ioengine=libaio", "--thread", "--time_based", "--gtod_reduce=1", "--norandommap", "--output-format=json"]


@dataclass(frozen=True)
class Work:
    name: str
    rw: str
    block: str
    depth: int
    direct: int = 1

    @property
    def unit(self) -> str:
        return "IOPS" if self.rw.startswith("rand") else "MB/s"


WORKS = [
    Work("read 1 MiB", "read", "1M", 1),
    Work("write 1 MiB", "write", "1M", 1),
    Work("random read 4 KiB", "randread", "4k", 1),
    Work("random write 4 KiB", "randwrite", "4k", 1),
    Work("random read 4 KiB, depth 32", "randread", "4k", 32),
    Work("random write 4 KiB, depth 32", "randwrite", "4k", 32),
]

# The properties in which limits of a request could differ.
LARGE_WORKS = [
    *WORKS[:2],
    Work("read 1 MiB, depth 8", "read", "1M", 8),
    Work("write 1 MiB, depth 8", "write", "1M", 8),
    Work("read 4 MiB", "read", "4M", 1),
    Work("write 4 MiB", "write", "4M", 1),
    Work("read 1 MiB, page cache", "read", "1M", 1, direct=0),
]


def fill(device: str) -> None:
    """The server must have memory for each block: to read a block that was never written is faster."""
    work = Work("fill", "write", "1M", 8)
    subprocess.run(["fio", *_section(work, device), "--ioengine=libaio"], check=True, capture_output=True)


def round_of(works: list[Work], devices: list[str], seconds: float) -> dict[tuple[str, str], float]:
    """By work and device: MB/s, or IOPS if the work is random. Work by work, the devices in the order given.

    One process for all: fio needs seconds to start in an emulated guest.
    """
    sections = [section for work in works for device in devices for section in _section(work, device)]
    command = ["fio", *COMMON, f"--runtime={seconds * 1000:.0f}ms", *sections]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout[done.stdout.index("{") :])  # notes of fio's may come first
    found = {}
    pairs = [(work, device) for work in works for device in devices]
    for job, (work, device) in zip(report["jobs"], pairs, strict=True):
        direction = job["write" if "write" in work.rw else "read"]
        found[work.name, device] = direction["iops"] if work.unit == "IOPS" else direction["bw_bytes"] / 1e6
    return found


def _section(work: Work, device: str) -> list[str]:
    return [
        f"--name={work.name}",
        "--stonewall",
        f"--filename={device}",
        f"--rw={work.rw}",
        f"--bs={work.block}",
        f"--iodepth={work.depth}",
        f"--direct={work.direct}",
    ]
