# SPDX-License-Identifier: GPL-2.0-or-later
"""Disk images: the same content through nbdattach and through qemu-nbd -c, each with an image of its own."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import fio
from attached import REST_SECONDS, Device, run, until
from figures import Row

SUFFIXES = {"raw": "img", "qcow2": "qcow2"}
# Aims of the issue, for the ratio to qemu-nbd -c.
SEQUENTIAL, ATTACH = ">= 1.5", "<= 1.0"
WORKS = [
    *fio.WORKS,
    fio.Work("read 1 MiB, page cache", "read", "1M", 1, direct=0),
]
OURS, THEIRS = "nbdattach netlink", "qemu-nbd -c"


@dataclass(frozen=True)
class Tool:
    name: str
    attach: list[str]
    detach: list[str]
    device: Device


@contextmanager
def tools(nbdattach: str, kind: str, mebibytes: int) -> Iterator[list[Tool]]:
    """Each with a device and an image that has a partition."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        ours, theirs = (Path(folder, f"{name}.{SUFFIXES[kind]}") for name in ("ours", "theirs"))
        raw = Path(folder, "raw")
        subprocess.run(["truncate", "-s", f"{mebibytes}M", raw], check=True)
        subprocess.run(["sfdisk", "-q", raw], input="label: gpt\n,\n", text=True, check=True)
        for path in (ours, theirs):
            subprocess.run(["qemu-img", "convert", "-O", kind, "-f", "raw", raw, path], check=True)
        first, second = Device(0), Device(1)
        yield [
            Tool(
                OURS,
                [nbdattach, "connect", "--backend", "netlink", str(ours), first.path],
                [nbdattach, "disconnect", first.path],
                first,
            ),
            Tool(
                THEIRS,
                ["qemu-nbd", f"--format={kind}", f"--connect={second.path}", str(theirs)],
                ["qemu-nbd", "--disconnect", second.path],
                second,
            ),
        ]


def _row(what: str, unit: str, aim: str = "") -> Row:
    return Row(what, unit, OURS, {OURS: [], THEIRS: []}, {THEIRS: aim} if aim else {})


def data(nbdattach: str, kind: str, rounds: int, seconds: float) -> list[Row]:
    rows = {work.name: _row(work.name, work.unit, SEQUENTIAL if work.unit == "MB/s" else "") for work in WORKS}
    with tools(nbdattach, kind, 256) as both:
        for one in both:
            run(one.attach)
            until(lambda one=one: has_partition(one.device))  # type: ignore[misc]
            fio.fill(one.device.path)
        names = {one.device.path: one.name for one in both}
        for number in range(rounds):
            paths = list(names) if number % 2 else list(names)[::-1]
            for (work, path), figure in fio.round_of(WORKS, paths, seconds).items():
                rows[work].samples[names[path]].append(figure)
        for one in both:
            run(one.detach)
            until(lambda one=one: one.device.free)  # type: ignore[misc]
    return list(rows.values())


def attaching(nbdattach: str, kind: str, rounds: int) -> list[Row]:
    attach, detach = _row("connect, until partitions are there", "ms", ATTACH), _row("disconnect, until free", "ms")
    with tools(nbdattach, kind, 64) as both:
        for number in range(-1, rounds):  # the first reads the programs from disk and does not count
            for one in both:
                took = run(one.attach) + until(lambda one=one: has_partition(one.device))  # type: ignore[misc]
                if number >= 0:
                    attach.samples[one.name].append(took)
                subprocess.run(["sleep", str(REST_SECONDS)], check=True)
                took = run(one.detach) + until(lambda one=one: one.device.free)  # type: ignore[misc]
                if number >= 0:
                    detach.samples[one.name].append(took)
                subprocess.run(["sleep", str(REST_SECONDS)], check=True)
    return [attach, detach]


def has_partition(device: Device) -> bool:
    with suppress(OSError):
        os.close(os.open(device.path, os.O_RDONLY))  # there is no udev, which would make the kernel look for partitions
    name = Path(device.path).name
    return Path(f"/sys/block/{name}/{name}p1").exists()
