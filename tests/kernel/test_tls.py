"""TLS that the kernel carries: data right, both directions in the kernel, no process of ours in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
from certificates import make
from conftest import monitors, workers
from load import Load
from servers import Server, free_port, nbd_server, nbdkit, qemu_nbd
from test_restart import nothing_goes_wrong, state_of
from tls_server import record_server
from tool import BACKEND, attached, digest_of, eventually, fill_with_noise, nbd, nbd_ok, sparse_file

from nbdattach.device import Device
from nbdattach.sysfs import Kernel

FIRST = Kernel(Device(0))
MIB = 1 << 20


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tls") / "certificates")


def in_kernel() -> tuple[int, int]:
    """Connections whose sending, and whose receiving, the kernel carries now (net/tls/tls_proc.c)."""
    counts = dict(line.split() for line in Path("/proc/net/tls_stat").read_text().splitlines())
    return int(counts["TlsCurrTxSw"]), int(counts["TlsCurrRxSw"])


def by_nbdkit(image: Path, certificates: Path) -> AbstractContextManager[Server]:
    options = ["--tls=require", f"--tls-certificates={certificates}", "--threads=1"]
    return nbdkit(*options, "file", f"file={image}")


def by_qemu_nbd(image: Path, certificates: Path) -> AbstractContextManager[Server]:
    secret = f"tls-creds-x509,id=tls0,endpoint=server,verify-peer=no,dir={certificates}"
    return qemu_nbd(str(image), "--object", secret, "--tls-creds", "tls0")


def by_nbd_server(image: Path, certificates: Path) -> AbstractContextManager[Server]:
    files = "\n".join(f"{key} = {certificates}/{name}.pem" for key, name in (
        ("certfile", "server-cert"), ("keyfile", "server-key"), ("cacertfile", "ca-cert")
    ))  # fmt: skip
    return nbd_server({"disk": str(image)}, generic=f"{files}\nforce_tls = true")


Serve = Callable[[Path, Path], AbstractContextManager[Server]]


@pytest.mark.essential
@pytest.mark.parametrize(
    ("serve", "connections"), [(by_nbdkit, 1), (by_nbdkit, 4), (by_qemu_nbd, 1), (by_nbd_server, 1)]
)
def test_data_goes_through_the_kernel(tmp_path: Path, certificates: Path, serve: Serve, connections: int) -> None:
    image = sparse_file(tmp_path / "image", 64 * MIB)
    trust = {"tls_ca": str(certificates / "ca-cert.pem")}
    if serve is by_nbd_server:  # it always wants to know who comes
        trust |= {f"tls_{key}": str(certificates / f"server-{key}.pem") for key in ("cert", "key")}
    with serve(image, certificates) as server:
        target = server.export("disk" if serve is by_nbd_server else "", scheme="nbds")
        with attached(target, "nbd0", connections=connections, **trust) as attachment:
            assert in_kernel() == (connections, connections)
            written = fill_with_noise("/dev/nbd0", 64)
            Path("/proc/sys/vm/drop_caches").write_text("3")
            assert digest_of("/dev/nbd0") == written
            found = attachment.status().tls
            assert found and (found["version"], found["transport"]) == ("TLSv1.2", "kernel")
            # The ioctl worker waits in the kernel; by netlink there is the monitor, which has no part in it.
            assert len(workers()) == 1 and (BACKEND == "ioctl" or len(monitors()) == 1)
    assert digest_of(image) == written
    assert in_kernel() == (0, 0)


def test_a_server_that_is_not_verified_is_not_attached(tmp_path: Path, certificates: Path) -> None:
    other = make(tmp_path / "other")
    with by_nbdkit(sparse_file(tmp_path / "image", MIB), certificates) as server:
        target = server.export(scheme="nbds")
        done = nbd("connect", "--tls-ca", str(other / "ca-cert.pem"), target, "nbd0")
        assert (done.code, done.out, FIRST.attached) == (5, "", False)
        assert "the server is not verified: its certificate was issued by 'test-ca'" in done.err
        done = nbd("connect", "--tls-no-verify", target, "nbd0")
        assert (done.code, done.out) == (0, "/dev/nbd0\n")
        assert "warning: the server is not verified" in done.err
        nbd_ok("disconnect", "nbd0")
        assert nbd("connect", server.uri, "nbd0").code in (4, 5)


@pytest.mark.netlink
@pytest.mark.parametrize("connections", [1, 4])
def test_a_killed_server_comes_back(tmp_path: Path, certificates: Path, connections: int) -> None:
    image, port = sparse_file(tmp_path / "image", 16 * MIB), free_port()
    options = ["--tls=require", f"--tls-certificates={certificates}", "--threads=1", "file", f"file={image}"]
    with ExitStack() as servers, ExitStack() as devices:
        server = servers.enter_context(nbdkit(*options, port=port))
        ca = str(certificates / "ca-cert.pem")
        devices.enter_context(attached(server.export(scheme="nbds"), "nbd0", tls_ca=ca, connections=connections))
        load = Load("/dev/nbd0", writers=2)
        with nothing_goes_wrong(load, image):
            load.see_it_run()
            server.kill()
            eventually(lambda: state_of("nbd0") == "reconnecting")
            time.sleep(1)
            servers.enter_context(nbdkit(*options, port=port))
            load.see_it_run()
            eventually(lambda: state_of("nbd0") == "connected")
            assert in_kernel()[0] >= connections


RECORDS = {
    "warning": (21, b"\x01\x64"),
    "close_notify": (21, b"\x01\x00"),
    "fatal alert": (21, b"\x02\x50"),
    "key update": (22, b"\x18\0\0\x01\0"),
    "ticket": (22, b"\x04\0\0\x06\0\0\x0e\x10\0\0"),
    "hello request": (22, b"\0\0\0\0"),
}


@pytest.mark.netlink
@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_that_is_no_data_replaces_the_connection(tmp_path: Path, certificates: Path, kind: str) -> None:
    image = sparse_file(tmp_path / "image", 4 * MIB)
    ca = str(certificates / "ca-cert.pem")
    with record_server(image, certificates) as server, attached(server.uri, "nbd0", tls_ca=ca):
        load = Load("/dev/nbd0", writers=2)
        with nothing_goes_wrong(load, image):
            load.see_it_run()
            before = server.connections
            server.inject = RECORDS[kind]
            eventually(lambda: server.connections > before)
            load.see_it_run()
            eventually(lambda: state_of("nbd0") == "connected")
