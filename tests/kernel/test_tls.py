# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS that the kernel carries: data right, both directions in the kernel, no process of ours in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import PAST, Authority, make, self_signed
from leftovers import monitors, workers
from load import Load, seconds_for_a_new_read
from servers import Server, free_port, nbd_server, nbdkit, qemu_nbd
from test_restart import nothing_goes_wrong, state_of
from tls_server import ClearServer, record_server
from tool import BACKEND, attached, digest_of, eventually, fill_with_noise, nbd, nbd_ok, promised, shell, sparse_file

from nbdattach.device import Device
from nbdattach.kernel.sysfs import Kernel

FIRST = Kernel(Device(0))
MIB = 1 << 20


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tls") / "certificates")


def in_kernel() -> tuple[int, int]:
    """Connections with sending and receiving in the kernel's hands now (net/tls/tls_proc.c)."""
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


@pytest.mark.parametrize(
    ("serve", "connections"),
    [
        pytest.param(by_nbdkit, 1, marks=pytest.mark.essential),
        pytest.param(by_nbdkit, 4, marks=pytest.mark.essential),
        (by_qemu_nbd, 1),
        (by_nbd_server, 1),
    ],
)
def test_data_goes_through_the_kernel(tmp_path: Path, certificates: Path, serve: Serve, connections: int) -> None:
    image = sparse_file(tmp_path / "image", 16 * MIB)
    trust = {"tls_ca": str(certificates / "ca-cert.pem")}
    if serve is by_nbd_server:  # it always asks for a client certificate
        trust |= {f"tls_{key}": str(certificates / f"server-{key}.pem") for key in ("cert", "key")}
    with serve(image, certificates) as server:
        target = server.export("disk" if serve is by_nbd_server else "", scheme="nbds")
        with attached(target, "nbd0", connections=connections, **trust) as attachment:
            assert in_kernel() == (connections, connections)
            written = fill_with_noise("/dev/nbd0", 16)
            Path("/proc/sys/vm/drop_caches").write_text("3")
            assert digest_of("/dev/nbd0") == written
            found = attachment.status().tls
            assert found and (found["version"], found["transport"]) == ("TLSv1.2", "kernel")
            # The ioctl worker waits in the kernel; by netlink there is the monitor, which has no part in it.
            assert len(workers()) == 1 and (BACKEND == "ioctl" or len(monitors()) == 1)
    assert digest_of(image) == written
    eventually(lambda: in_kernel() == (0, 0))  # a connection goes a moment after its last user


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


def test_connect_warns_of_a_key_that_every_user_can_read(tmp_path: Path, certificates: Path) -> None:
    key = Path("/run/open key.pem")
    key.write_bytes((certificates / "server-key.pem").read_bytes())
    trust = ["--tls-ca", f"{certificates}/ca-cert.pem", "--tls-cert", f"{certificates}/server-cert.pem"]
    with by_nbdkit(sparse_file(tmp_path / "image", MIB), certificates) as server:
        warning = f"nbdattach: warning: every user can read or write the key {key}: chmod go= '{key}'"
        for mode, said in ((0o644, [warning]), (0o600, [])):
            key.chmod(mode)
            done = nbd("connect", *trust, "--tls-key", str(key), server.export(scheme="nbds"), "nbd0")
            assert (done.code, done.err.splitlines()) == (0, said)
            nbd_ok("disconnect", "nbd0")


@dataclass
class Wrong:
    """A way to be refused: the options of nbdkit, those of connect, and the result."""

    serve: str  # options of nbdkit, with {} for the folder of certificates
    connect: str
    code: int
    words: str
    scheme: str = "nbds"


TLS, CLIENTS = "--tls=require --tls-certificates={}", " --tls-verify-peer"
SHOWN = " --tls-cert={}/{}/client-cert.pem --tls-key={}/{}/client-key.pem"
OURS = "--tls-ca={}/good/ca-cert.pem"
WRONG = {
    "wrong CA": Wrong(TLS + "/good", "--tls-ca={}/other/ca-cert.pem", 5, "issued by 'test-ca', and no authority in"),
    "system CAs": Wrong(TLS + "/good", "", 5, "no authority that this machine trusts"),
    "wrong name": Wrong(TLS + "/good", OURS + " --tls-hostname=db1", 5, "not for 'db1'"),
    "expired": Wrong(TLS + "/late", OURS, 5, "its certificate expired 2020-02-01"),
    "self-signed": Wrong(TLS + "/self", OURS, 5, "its certificate is self-signed"),
    "no certificate": Wrong(TLS + "/good" + CLIENTS, OURS, 5, "asked for a client certificate, got none"),
    "stranger": Wrong(TLS + "/good" + CLIENTS, OURS + SHOWN.replace("/{}/c", "/other/c"), 5, "after it received"),
    "revoked": Wrong(TLS + "/good" + CLIENTS, OURS + SHOWN.replace("/{}/c", "/revoked/c"), 5, "after it received"),
    "no TLS": Wrong("--tls=off", OURS, 5, "the server refuses TLS: the server's policy forbids NBD_OPT_STARTTLS"),
    "unasked": Wrong(TLS + "/good", "", 5, "the server requires TLS", "nbd"),
}


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pki")
    ours, other = Authority(root / "ours"), Authority(root / "another")
    ours.issue(root / "good", "server")
    ours.issue(root / "late", "server", valid=PAST)
    ours.issue(root / "revoked", "client", name="me", alternatives="")
    (root / "good" / "ca-crl.pem").write_bytes(ours.revoke(root / "revoked" / "client-cert.pem").read_bytes())
    other.issue(root / "other", "client", name="me", alternatives="")
    other.issue(root / "other", "server")
    self_signed(root / "self")
    return root


def refused(*arguments: str, seconds: float = 30) -> tuple[int, str]:
    """The result of a connect that must attach nothing, leave nothing, and say so in a line and a hint, in time."""
    began = time.monotonic()
    done = nbd("connect", *arguments, "nbd0")
    assert time.monotonic() - began < promised(seconds)
    assert (done.out, FIRST.attached, FIRST.size) == ("", False, 0)
    line, hint = done.err.splitlines()
    assert hint.startswith("(") and hint.endswith(")")
    return done.code, line


@pytest.mark.ioctl
@pytest.mark.parametrize("transport", ["auto", "kernel", "relay"])
@pytest.mark.parametrize("which", WRONG)
def test_a_server_that_is_wrong_attaches_nothing(authorities: Path, which: str, transport: str) -> None:
    wrong = WRONG[which]
    options = wrong.connect.replace("{}", str(authorities)).split()
    with nbdkit(*wrong.serve.replace("{}", str(authorities)).split(), "memory", "1M") as server:
        code, line = refused("--tls-transport", transport, *options, server.export(scheme=wrong.scheme))
    assert code == wrong.code
    assert wrong.words in line


@pytest.mark.ioctl
@pytest.mark.parametrize("transport", ["auto", "kernel", "relay"])
def test_a_server_that_stalls_or_speaks_in_the_clear_attaches_nothing(certificates: Path, transport: str) -> None:
    options = ("--tls-transport", transport, "--tls-ca", str(certificates), "--connect-timeout", "3")
    with closing(ClearServer()) as server:
        code, line = refused(*options, server.uri, seconds=10)
    assert (code, line) == (3, f"nbdattach: {server.uri}: no answer within 3 s (TLS handshake)")
    said = bytes.fromhex("0003e889045565a9 00000007 00000001 00000000")  # yes to NBD_OPT_GO
    with closing(ClearServer(said)) as server:
        code, line = refused(*options, server.uri)
    assert code == 5
    assert "unencrypted data arrived after the server agreed to start TLS" in line
    assert server.heard == b""


@pytest.mark.parametrize("transport", ["kernel", "relay"])
def test_an_attachment_by_other_trust_is_another_one(certificates: Path, tmp_path: Path, transport: str) -> None:
    with by_nbdkit(sparse_file(tmp_path / "image", MIB), certificates) as server:
        target, ca = server.export(scheme="nbds"), ("--tls-ca", str(certificates))
        nbd_ok("connect", "--tls-no-verify", "--tls-transport", transport, target, "nbd0")
        other = "relay" if transport == "kernel" else "kernel"
        for options, words in ((ca, "other TLS options"), (("--tls-no-verify", "--tls-transport", other), "not by")):
            done = nbd("connect", *options, target, "nbd0")
            assert done.code == 7
            assert words in done.err
        assert "already attached" in nbd("connect", "--tls-no-verify", target, "nbd0").err
        nbd_ok("disconnect", "nbd0")


@pytest.mark.netlink
@pytest.mark.parametrize("transport", ["kernel", "relay"])
def test_a_hand_over_takes_its_own_trust_along(authorities: Path, tmp_path: Path, transport: str) -> None:
    image, port = sparse_file(tmp_path / "image", 4 * MIB), free_port()
    options = ["--tls=require", f"--tls-certificates={authorities}/other", "file", f"file={image}"]
    with ExitStack() as servers, by_nbdkit(image, authorities / "good") as first:
        second = servers.enter_context(nbdkit(*options, port=port))
        target, ca = second.export(scheme="nbds"), str(authorities / "other" / "ca-cert.pem")
        with attached(first.export(scheme="nbds"), "nbd0", tls_ca=str(authorities / "good"), tls_transport=transport):
            load = Load("/dev/nbd0", writers=2)
            with nothing_goes_wrong(load, image):
                load.see_it_run()
                done = nbd("reconnect", "nbd0", target)
                assert done.code == 5
                assert "no authority that this machine trusts" in done.err
                done = nbd("reconnect", "nbd0", second.uri)
                assert done.code == 5
                assert "not encrypted, but the device was attached over TLS" in done.err
                nbd_ok("reconnect", "--tls-ca", ca, "nbd0", target)
                load.see_it_run()
                second.kill()
                eventually(lambda: state_of("nbd0") == "reconnecting")
                servers.enter_context(nbdkit(*options, port=port))
                load.see_it_run()
                eventually(lambda: state_of("nbd0") == "connected")


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
@pytest.mark.parametrize("transport", ["kernel", "relay"])
def test_the_files_may_be_on_the_disk_that_is_away(authorities: Path, tmp_path: Path, transport: str) -> None:
    """As on a machine that runs from it: a process that reads them before it is back would wait for itself."""
    image, port = sparse_file(tmp_path / "image", 32 * MIB), free_port()
    options = ["--tls=require", f"--tls-certificates={authorities}/good", "file", f"file={image}"]
    with ExitStack() as servers:
        server = servers.enter_context(nbdkit(*options, port=port))
        target = server.export(scheme="nbds")
        with attached(target, "nbd0", tls_ca=str(authorities / "good"), tls_transport=transport):
            shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
            shell(f"cp {authorities}/good/ca-cert.pem /mnt && sync")
            nbd_ok("reconnect", "--tls-ca", "/mnt/ca-cert.pem", "nbd0", target)
            server.kill()
            eventually(lambda: state_of("nbd0") == "reconnecting")
            Path("/proc/sys/vm/drop_caches").write_text("3")
            servers.enter_context(nbdkit(*options, port=port))
            eventually(lambda: state_of("nbd0") == "connected")
            shell("cmp /mnt/ca-cert.pem " + str(authorities / "good" / "ca-cert.pem"))
            shell("umount /mnt")


# A relay passes over the others, as TLS asks for.
RARE_BY_RELAY = ("fatal alert", "key update", "ticket")


@pytest.mark.netlink
@pytest.mark.parametrize(
    ("kind", "transport"),
    [
        *((kind, "kernel") for kind in RECORDS),
        ("close_notify", "relay"),
        *(pytest.param(kind, "relay", marks=pytest.mark.rare) for kind in RARE_BY_RELAY),
    ],
)
def test_a_record_that_is_no_data_replaces_the_connection(
    tmp_path: Path, certificates: Path, kind: str, transport: str
) -> None:
    image = sparse_file(tmp_path / "image", 4 * MIB)
    trust = {"tls_ca": str(certificates / "ca-cert.pem"), "tls_transport": transport}
    with record_server(image, certificates) as server, attached(server.uri, "nbd0", **trust):
        load = Load("/dev/nbd0", writers=2)
        with nothing_goes_wrong(load, image):
            load.see_it_run()
            before = server.connections
            server.inject = RECORDS[kind]
            eventually(lambda: server.connections > before)
            load.see_it_run()
            eventually(lambda: state_of("nbd0") == "connected")


@pytest.mark.ioctl
@pytest.mark.parametrize("kind", ["close_notify", "key update", "ticket"])
def test_such_a_record_ends_an_attachment_by_ioctl_without_a_hang(
    tmp_path: Path, certificates: Path, kind: str
) -> None:
    image = sparse_file(tmp_path / "image", 4 * MIB)
    with record_server(image, certificates) as server:
        nbd_ok("connect", "--tls-ca", str(certificates), server.uri, "nbd0")
        assert seconds_for_a_new_read("/dev/nbd0") < promised(5)
        server.inject = RECORDS[kind]
        began = time.monotonic()
        with pytest.raises(OSError):
            seconds_for_a_new_read("/dev/nbd0")
        assert time.monotonic() - began < promised(10)
        nbd_ok("disconnect", "--force", "nbd0")
