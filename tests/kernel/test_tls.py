"""TLS that the kernel carries: data right, both directions in the kernel, no process of ours in between."""

from __future__ import annotations

from pathlib import Path

import pytest
from certificates import make
from conftest import workers
from servers import nbdkit
from tool import attached, digest_of, fill_with_noise, sparse_file

from nbdattach.device import Device
from nbdattach.sysfs import Kernel

FIRST = Kernel(Device(0))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tls") / "certificates")


def in_kernel() -> tuple[int, int]:
    """Connections whose sending, and whose receiving, the kernel carries now (net/tls/tls_proc.c)."""
    counts = dict(line.split() for line in Path("/proc/net/tls_stat").read_text().splitlines())
    return int(counts["TlsCurrTxSw"]), int(counts["TlsCurrRxSw"])


@pytest.mark.parametrize("connections", [1, 4])
def test_data_goes_through_the_kernel(tmp_path: Path, certificates: Path, connections: int) -> None:
    image = sparse_file(tmp_path / "image", 64 << 20)
    options = ["--tls=require", f"--tls-certificates={certificates}"]
    with nbdkit(*options, "--threads=1", "file", f"file={image}") as server:
        target = server.uri.replace("nbd://", "nbds://")
        ca = str(certificates / "ca-cert.pem")
        with attached(target, "nbd0", tls_ca=ca, connections=connections) as attachment:
            assert in_kernel() == (connections, connections)
            written = fill_with_noise("/dev/nbd0", 64)
            Path("/proc/sys/vm/drop_caches").write_text("3")
            assert digest_of("/dev/nbd0") == written
            found = attachment.status().tls
            assert found and (found["version"], found["transport"]) == ("TLSv1.2", "kernel")
            assert all("relay.main" not in line for _, line in workers())
    assert digest_of(image) == written
    assert in_kernel() == (0, 0)
