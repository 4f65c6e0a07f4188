# SPDX-License-Identifier: GPL-2.0-or-later
"""CPU time of the process that carries TLS where the kernel does not: ours, that of the build before, nbd-client's."""

from __future__ import annotations

import time
from pathlib import Path

import before
import monitor_process
import tls
from attached import REST_SECONDS, Device, processes, run, until
from contenders import Contender, build
from figures import Row

OURS, PROXY = "nbdattach", "nbd-client's proxy"
# Enough for some dozens of ticks of CPU time, 10 ms each.
MEBIBYTES = 512
AIM = "<= 0.65"


def measure(nbdattach: str, build_before: str | None, size: str, rounds: int) -> list[Row]:
    with tls.served(size, tls.CIPHERS["tls"]) as (server, folder):
        contenders = [_relay(nbdattach, OURS, folder)]
        if build_before:
            contenders.append(_relay(build_before, before.NAME, folder))
        contenders += [one for one in tls.contenders(nbdattach, folder) if one.name == PROXY]
        row = Row(
            "CPU of the process, a MiB read",
            "ms",
            OURS,
            {one.name: [] for one in contenders},
            {one.name: AIM for one in contenders[1:]},
        )
        for _ in range(rounds):
            for contender in contenders:
                others = processes()
                run(contender.attach(server, "/dev/nbd0"))
                device = Device(0)
                until(lambda device=device: device.ready)  # type: ignore[misc]
                time.sleep(REST_SECONDS)
                row.samples[contender.name].append(_a_mebibyte(device, processes() - others))
                run(contender.detach(device.path))
                until(lambda device=device: device.free)  # type: ignore[misc]
                time.sleep(REST_SECONDS)
    return [row]


def _relay(program: str, name: str, folder: Path) -> Contender:
    """Without a monitor, so that no build's monitor meets a device of the other."""
    options = ("--backend", "netlink", "--no-reconnect", "--tls-transport", "relay", "--tls-ca")
    return build(program, name, *options, f"{folder}/ca-cert.pem")


def _a_mebibyte(device: Device, pids: set[int]) -> float:
    """CPU milliseconds of these processes for a MiB that is read."""
    if not pids:
        raise RuntimeError(f"{device.path}: no process carries its data")
    count = min(MEBIBYTES, device.mebibytes)
    started = sum(map(monitor_process.cpu_milliseconds, pids))
    run(["dd", f"if={device.path}", "of=/dev/null", "iflag=direct", "bs=1M", f"count={count}"])
    return (sum(map(monitor_process.cpu_milliseconds, pids)) - started) / count
