# SPDX-License-Identifier: GPL-2.0-or-later
"""The half of the bench that needs the kernel's driver. Runs in a guest; leaves rows of figures as JSON, part by part.

Must not be run on the machine itself: it takes /dev/nbd0 and up for its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import crowd
import earlier
import fio
import images
import outages
import relay
import restarts
import scale
import tls
from attached import REST_SECONDS, Device, processes, run, until
from contenders import PARTS, Contender, by_ioctl, by_netlink, connections, netlink, sectors, tools
from figures import Row
from servers import Server, nbdkit

SOCKET = "/run/bench.sock"
# The measurements of `_one_attachment`, in its order; the aims are for nbd-client, which is the second contender.
ATTACHING = (
    ("connect, the command", "ms", ""),
    ("connect, until it has its size", "ms", "<= 4"),
    ("disconnect, the command", "ms", ""),
    ("disconnect, until it is free", "ms", "<= 5"),
    ("memory that stays (RSS)", "MB", ""),
    ("memory that stays, unshared", "MB", ""),
)


# -- the data path -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def all_attached(contenders: list[Contender], server: Server) -> Iterator[list[Device]]:
    """Each contender with a device of its own, all to one server, so that they can take turns within a second."""
    devices = [Device(number) for number in range(len(contenders))]
    for contender, device in zip(contenders, devices, strict=True):
        run(contender.attach(server, device.path))
        until(lambda device=device: device.ready)  # type: ignore[misc]
        if contender.max_sectors_kb:
            device.limit(contender.max_sectors_kb)
    yield devices
    for contender, device in zip(contenders, devices, strict=True):
        run(contender.detach(device.path))
        until(lambda device=device: device.free)  # type: ignore[misc]


def data_path(
    contenders: list[Contender], works: list[fio.Work], server: Server, options: argparse.Namespace
) -> list[Row]:
    with all_attached(contenders, server) as devices:
        return throughput(contenders, works, devices, options)


def throughput(
    contenders: list[Contender], works: list[fio.Work], devices: list[Device], options: argparse.Namespace
) -> list[Row]:
    aims = {contender.name: contender.data_path_aim for contender in contenders}
    rows = {work.name: empty_row(work.name, work.unit, contenders, aims) for work in works}
    fio.fill(devices[0].path)
    names = {device.path: contender.name for contender, device in zip(contenders, devices, strict=True)}
    for number in range(options.rounds):
        found = fio.round_of(works, in_turn(list(names), number), options.seconds)
        for (work, path), figure in found.items():
            rows[work].samples[names[path]].append(figure)
    return list(rows.values())


def in_turn(paths: list[str], number: int) -> list[str]:
    """The order of this round: no path is always the first, nor always behind the same one."""
    start = number % len(paths)
    order = paths[start:] + paths[:start]
    return order if number % 2 else order[::-1]


def empty_row(what: str, unit: str, contenders: list[Contender], aims: dict[str, str] | None = None) -> Row:
    return Row(what, unit, contenders[0].name, {contender.name: [] for contender in contenders}, aims or {})


# -- attaching and detaching -------------------------------------------------------------------------------------


def attaching(contenders: list[Contender], server: Server, rounds: int) -> list[Row]:
    """Times of the commands, the time until the device is usable or free, and the memory that stays in use."""
    rows = [empty_row(what, unit, contenders, {contenders[1].name: aim}) for what, unit, aim in ATTACHING]
    for number in range(-1, rounds):  # the first reads the programs from disk and does not count
        for contender in contenders:
            figures = _one_attachment(contender, server, Device(0))
            for row, figure in zip(rows, figures, strict=True):
                if number >= 0:
                    row.samples[contender.name].append(figure)
    return rows


def _one_attachment(contender: Contender, server: Server, device: Device) -> list[float]:
    before = processes()
    attach = run(contender.attach(server, device.path))
    ready = attach + until(lambda: device.ready)
    time.sleep(REST_SECONDS)
    rss, unshared = memory(processes() - before)
    detach = run(contender.detach(device.path))
    free = detach + until(lambda: device.free)
    time.sleep(REST_SECONDS)
    return [attach, ready, detach, free, rss, unshared]  # as in ATTACHING


def memory(pids: set[int]) -> tuple[float, float]:
    """Resident memory of these processes in MB, and the part of it that no other process shares."""
    rss = unshared = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
                name, _, value = line.partition(":")
                if name == "Rss":
                    rss += int(value.split()[0]) / 1024
                elif name in ("Private_Clean", "Private_Dirty"):
                    unshared += int(value.split()[0]) / 1024
    return rss, unshared


def over_tls(cipher: str, options: argparse.Namespace) -> list[Row]:
    with tls.served(options.size, cipher) as (server, folder):
        contenders = tls.contenders(options.nbdattach, folder)
        with all_attached(contenders, server) as devices:
            rows = throughput(contenders, fio.WORKS[:2], devices, options)
            names = [contender.name for contender in contenders]
            return [*rows, tls.processor_time(dict(zip(names, devices, strict=True)), options.rounds)]


# -- the whole ---------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, failed: list[str]) -> Iterator[tuple[str, list[Row]]]:
    """Title and rows of one table after the other. A part that fails goes to `failed`, and the others go on."""
    path = "a Unix socket" if options.unix else "TCP"
    with nbdkit("memory", options.size, unix=SOCKET if options.unix else "") as server:
        if options.sweep == "sectors":
            rows = data_path(sectors(options.nbdattach), fio.LARGE_WORKS, server, options)
            yield f"max_sectors_kb over {path}, ioctl", rows
        elif options.sweep == "connections":
            yield (
                f"Connections over {path}, ioctl",
                data_path(connections(options.nbdattach), fio.WORKS, server, options),
            )
        else:
            for part in options.only:
                try:
                    yield part_of(part, path, server, options)
                except Exception:
                    traceback.print_exc()
                    failed.append(part)


def part_of(part: str, path: str, server: Server, options: argparse.Namespace) -> tuple[str, list[Row]]:
    """The title of a table, and its rows."""
    ours, rounds = options.nbdattach, options.rounds
    if part == "attaching":
        return "Attaching by ioctl", attaching(by_ioctl(ours), server, rounds)
    if part == "attaching-netlink":
        return "Attaching by netlink", attaching(by_netlink(ours), server, rounds)
    if part == "data":
        return f"Data over {path}", data_path(tools(ours), fio.WORKS, server, options)
    if part == "restarts":
        kinds = {connections: netlink(ours, "-C", str(connections), "--io-timeout", "3") for connections in (1, 4)}
        return "Server's return", restarts.measure(kinds, rounds)
    if part == "monitor":
        return "Monitor, resident", crowd.monitor_memory(netlink(ours), server, min(rounds, crowd.MOST_ROUNDS))
    if part in ("images-raw", "images-qcow2"):
        kind = part.removeprefix("images-")
        rows = [*images.attaching(ours, kind, rounds), *images.data(ours, kind, rounds, options.seconds)]
        return f"Image, {kind}", rows
    if part == "before":
        return "Attaching, against the build before", earlier.measure(ours, options.before, server, rounds)
    if part == "crowd":
        counts = scale.counts_up_to(options.scale)
        return "Many devices", scale.measure(ours, min(rounds, scale.MOST_ROUNDS), counts)
    if part == "outages":
        return "Outages", outages.measure(ours, tuple(options.away))
    if part == "relay":
        return "Relay", relay.measure(ours, options.before, options.size, rounds)
    if part in tls.CIPHERS:
        cipher = tls.CIPHERS[part]
        return f"TLS, {cipher}", over_tls(cipher, options)
    return "Attaching many", crowd.at_once(by_netlink(ours), server, min(rounds, crowd.MOST_ROUNDS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nbdattach", required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--size", required=True)
    parser.add_argument("--before", default="", metavar="PROGRAM", help="of the build before; without it, none")
    parser.add_argument("--scale", type=int, required=True)
    parser.add_argument("--away", type=float, nargs="+", required=True)
    parser.add_argument("--sweep", default="")
    parser.add_argument("--unix", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    if "nbdattach.lab=1" not in Path("/proc/cmdline").read_text():
        sys.exit("this runs in a guest only: see tests/lab/README.md")
    subprocess.run(["modprobe", "nbd"], check=True)
    found: dict[str, list[dict[str, Any]]] = {}
    failed: list[str] = []
    for title, rows in measure(options, failed):
        found[title] = [asdict(row) for row in rows]
        options.result.write_text(json.dumps(found))  # the guest itself may end before the last part
    if failed:
        sys.exit(f"bench: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
