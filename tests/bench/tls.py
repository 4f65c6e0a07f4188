# SPDX-License-Identifier: GPL-2.0-or-later
"""Attached over TLS: the kernel as the carrier, beside userspace that pumps. One cipher for all, set at the server.

If the kernel's AES is in C alone (/proc/crypto), as in User-mode Linux, the table of AES tells of that and not of
the transport: userspace has the processor's own instructions there.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attached import Device, run
from certificates import make
from contenders import Contender, nbd_client, nbd_client_off, nbdattach_with
from figures import Row
from servers import Server, nbdkit

# GnuTLS of the server: TLS 1.2 with one of them, each of which all contenders know.
CIPHERS = {"tls": "aes-256-gcm", "tls-chacha20": "chacha20-poly1305"}
OTHERS = ("aes-128-gcm", "aes-128-ccm", "aes-256-ccm", "aes-128-cbc", "aes-256-cbc", "3des-cbc")
# For the processor time of a contender: so many MiB written, and as many read, if the export has them.
MEBIBYTES = 64


@contextlib.contextmanager
def served(size: str, cipher: str) -> Iterator[tuple[Server, Path]]:
    """A server that insists on TLS with this cipher, and the folder of its certificates."""
    # As udev does when a machine starts; a guest has no udev.
    subprocess.run(["modprobe", "-q", "aesni_intel"])
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = make(Path(name, "certificates"))
        (folder / "gnutls").write_text(_overrides(cipher))
        options = ["--tls=require", f"--tls-certificates={folder}", "memory", size]
        # Only the program that is started shall have these priorities.
        os.environ["GNUTLS_SYSTEM_PRIORITY_FILE"] = str(folder / "gnutls")
        try:
            running = nbdkit(*options)
            server = running.__enter__()
        finally:
            del os.environ["GNUTLS_SYSTEM_PRIORITY_FILE"]
        try:
            yield server, folder
        finally:
            running.__exit__(None, None, None)


def _overrides(cipher: str) -> str:
    off = {*OTHERS, *CIPHERS.values()} - {cipher}
    return "[overrides]\ndisabled-version = tls1.3\n" + "".join(f"tls-disabled-cipher = {name}\n" for name in off)


def contenders(nbdattach: str, folder: Path) -> list[Contender]:
    """Ours in the kernel first."""
    ca = f"{folder}/ca-cert.pem"

    def ours(name: str, transport: str) -> Contender:
        return nbdattach_with(nbdattach, name, "--backend", "netlink", "--tls-ca", ca, "--tls-transport", transport)

    def proxy(server: Server, device: str) -> list[str]:
        return nbd_client(server, device, "-cacertfile", ca, "-tlshostname", "localhost")

    def qemu(server: Server, device: str) -> list[str]:
        sock = f"{folder}/qemu.sock"
        secret = f"tls-creds-x509,id=tls0,endpoint=client,dir={folder}"
        host, port = server.tcp
        image = (
            f"driver=nbd,server.type=inet,server.host={host},server.port={port},tls-creds=tls0,tls-hostname=localhost"
        )
        pump = ["qemu-nbd", "--fork", "-k", sock, "--object", secret, "--image-opts", image]
        attach = [nbdattach, "connect", "--shared", "--tag", "qemu-nbd", sock, device]
        return ["sh", "-c", f"{shlex.join(pump)} && {shlex.join(attach)}"]

    def off(device: str) -> list[str]:
        return [nbdattach, "disconnect", device]

    return [
        ours("kernel", "kernel"),
        ours("relay", "relay"),
        Contender("nbd-client's proxy", proxy, nbd_client_off, data_path_aim=">= 1.2"),
        Contender("qemu-nbd in between", qemu, off),
    ]


def processor_time(devices: dict[str, Device], rounds: int) -> Row:
    """Of the whole guest, the server included, for the same bytes through each."""
    count = min(MEBIBYTES, *(device.mebibytes for device in devices.values()))
    row = Row(f"CPU, {count} MiB there and back", "ms", next(iter(devices)), {name: [] for name in devices}, {})
    for _ in range(rounds):
        for name, device in devices.items():
            row.samples[name].append(_busy(lambda device=device: _there_and_back(device.path, count)))  # type: ignore[misc]
    return row


def _there_and_back(path: str, count: int) -> None:
    for one in ((f"of={path}", "if=/dev/zero", "oflag=direct"), (f"if={path}", "of=/dev/null", "iflag=direct")):
        run(["dd", *one, "bs=1M", f"count={count}"])


def _busy(work: Callable[[], None]) -> float:
    before = _ticks()
    work()
    time.sleep(0.05)
    return (_ticks() - before) * 1000 / os.sysconf("SC_CLK_TCK")


def _ticks() -> int:
    """All but idle and waiting (proc_stat(5))."""
    user, nice, system, _, _, *others = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return user + nice + system + sum(others)
