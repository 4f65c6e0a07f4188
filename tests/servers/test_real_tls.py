# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS with common servers. They all have GnuTLS, and close the connection although they could send the reason."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from certificates import PAST, Authority
from servers import Server, nbd_server, nbdkit, qemu_nbd

from nbdattach.backends.limits import attachable
from nbdattach.cli import main
from nbdattach.connection import certificate, client, tls
from nbdattach.errors import NbdattachError
from nbdattach.protocol.target import parse_target, with_tls

SIZE = 1 << 20
SOON = 60.0
Capture = pytest.CaptureFixture[str]
EXPORTS = {"nbdkit": "", "qemu-nbd": "", "nbd-server": "disk"}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pki")
    ours, other = Authority(root / "ours"), Authority(root / "other", "other-ca")
    ours.issue(root / "good", "server")
    ours.issue(root / "client", "client", name="me", alternatives="")
    ours.issue(root / "late", "client", name="me", alternatives="", valid=PAST)
    ours.issue(root / "revoked", "client", name="me", alternatives="")
    other.issue(root / "stranger", "client", name="me", alternatives="")
    shutil.copytree(root / "good", root / "strict")
    shutil.copy(ours.revoke(root / "revoked" / "client-cert.pem"), root / "strict")
    image = root / "disk.img"
    image.write_bytes(bytes(SIZE))
    return root


@contextlib.contextmanager
def serving(kind: str, pki: Path, clients: bool = False) -> Iterator[Server]:
    """With the certificates of `strict`, for all or only for `clients` with a certificate; nbd-server has no choice."""
    folder, image = pki / "strict", str(pki / "disk.img")
    if kind == "nbdkit":
        verify = ["--tls-verify-peer"] if clients else []
        with nbdkit("--tls=require", f"--tls-certificates={folder}", *verify, "file", image) as server:
            yield server
    elif kind == "qemu-nbd":
        creds = f"tls-creds-x509,id=tls0,endpoint=server,dir={folder},verify-peer={'yes' if clients else 'no'}"
        with qemu_nbd(image, "--object", creds, "--tls-creds", "tls0") as server:
            yield server
    else:
        lines = [f"{what}file = {folder}/server-{what}.pem" for what in ("cert", "key")]
        lines += [f"cacertfile = {folder}/ca-cert.pem", "force_tls = true"]
        with nbd_server({"disk": image}, generic="\n".join(lines)) as server:
            yield server


def ca(pki: Path) -> str:
    return str(pki / "good" / "ca-cert.pem")


def error_of(server: Server, kind: str, pki: Path, kernel: bool = False, **trust: Any) -> tuple[int, str, str]:
    target = with_tls(parse_target(server.export(EXPORTS[kind])), **trust)
    with pytest.raises(NbdattachError) as caught:
        client.connect(target, SOON, kernel_tls=kernel).stream.close()
    error = caught.value
    return error.exit_code, error.cause.replace(str(pki), "PKI"), error.hint


@pytest.mark.row(8)
@pytest.mark.parametrize("kind", EXPORTS)
def test_list_info_and_check_over_tls(pki: Path, kind: str, capsys: Capture) -> None:
    with serving(kind, pki) as server:
        uri = server.export(EXPORTS[kind], "nbds")
        for command in ("list", "info", "check"):
            assert main.run([command, "--tls-ca", str(pki / "client"), "--json", uri]) == 0
        said = capsys.readouterr()
        assert main.run(["info", "--tls-ca", str(pki / "client"), uri]) == 0
        lines = capsys.readouterr().out.splitlines()
    assert said.err == ""
    listed, info, checked = map(json.loads, said.out.replace("}\n{", "}\0{").split("\0"))
    assert [one["name"] for one in listed["exports"]] == [EXPORTS[kind]]
    until = certificate.describe_file(str(pki / "strict" / "server-cert.pem")).until
    names = ["localhost", "127.0.0.1", "::1"]
    cipher = "TLS_AES_256_GCM_SHA384"
    assert info["tls"] == {"version": "TLSv1.3", "cipher": cipher, "names": names, "expires": until}
    shown = [f"tls:         TLSv1.3 {cipher}", f"certificate: for {', '.join(names)}, until {until}"]
    assert [line for line in lines if line.startswith(("tls:", "certificate:"))] == shown
    assert checked["ok"] is True


@pytest.mark.row(8)
@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("command", ["list", "info", "check"])
def test_server_that_requires_tls_names_the_option(pki: Path, kind: str, command: str, capsys: Capture) -> None:
    with serving(kind, pki) as server:
        uri = server.export(EXPORTS[kind] or "x")
        assert main.run([command, uri]) == 5
    line, hint = capsys.readouterr().err.splitlines()
    assert line.startswith(f"nbdattach: {uri}: the server requires TLS")
    assert hint == f"(use --tls, or {uri.replace('nbd:', 'nbds:')})"


NO_TLS: dict[str, tuple[Callable[[str], AbstractContextManager[Server]], str]] = {
    "nbdkit": (lambda image: nbdkit("--tls=off", "file", image), ""),
    "qemu-nbd": (lambda image: qemu_nbd(image), "; it says: 'TLS not configured'"),
    "nbd-server": (lambda image: nbd_server({"disk": image}), "; it says: 'TLS not allowed on this server'"),
}


@pytest.mark.row(8)
@pytest.mark.parametrize("kind", NO_TLS)
def test_server_without_tls_is_no_way_into_the_clear(pki: Path, kind: str) -> None:
    start, words = NO_TLS[kind]
    with start(str(pki / "disk.img")) as server:
        told = error_of(server, kind, pki, ca=ca(pki))
    cause = f"the server refuses TLS: the server's policy forbids NBD_OPT_STARTTLS{words}"
    assert told == (5, cause, "enable TLS on the server; no data was sent unencrypted")


# -- the client's identity ---------------------------------------------------------------------------------------------

ASKED = "the server asked for a client certificate, got none, and closed the connection"
LEFT = (
    "the server closed the connection after it received the client certificate "
    "PKI/{}/client-cert.pem, issued by '{}', {}"
)
SHOW = "--tls-cert FILE and --tls-key FILE give one"
FROM = "is it from an authority that the server trusts? see the server's log"
ISSUERS = {"stranger": "other-ca", "late": "test-ca", "revoked": "test-ca"}


@pytest.fixture(params=[False, True], ids=["TLS 1.3", "TLS 1.2"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With TLS 1.2 as for the kernel, but this machine's may lack it."""
    monkeypatch.setattr(tls.Handshake, "_require_it_in_kernel", lambda *_: None)
    return bool(request.param)


# nbd-server has no option for a list of revoked certificates.
REFUSED = [(kind, which) for which in ("", *ISSUERS) for kind in EXPORTS if (kind, which) != ("nbd-server", "revoked")]


@pytest.mark.row(8)
@pytest.mark.parametrize(("kind", "which"), REFUSED)
def test_server_that_wants_another_certificate_of_ours(pki: Path, kind: str, which: str, kernel: bool) -> None:
    """qemu-nbd looks at it after the handshake in any version, nbdkit and nbd-server in that of TLS 1.2."""
    trust = {what: str(pki / which / f"client-{what}.pem") for what in ("cert", "key")} if which else {}
    with serving(kind, pki, clients=True) as server:
        told = error_of(server, kind, pki, kernel, ca=ca(pki), **trust)
    if not which:
        assert told == (5, ASKED, SHOW)
        return
    until = certificate.describe_file(trust["cert"]).until
    assert told == (
        5,
        LEFT.format(which, ISSUERS[which], f"{'expired' if which == 'late' else 'valid until'} {until}"),
        FROM,
    )


@pytest.mark.row(8)
@pytest.mark.parametrize("kind", EXPORTS)
def test_our_certificate_is_accepted(pki: Path, kind: str, kernel: bool) -> None:
    with serving(kind, pki, clients=True) as server:
        target = with_tls(parse_target(server.export(EXPORTS[kind])), ca=str(pki / "client"))
        client.connect(target, SOON, kernel_tls=kernel).stream.close()


# -- versions and ciphers ----------------------------------------------------------------------------------------------


@pytest.mark.row(8)
@pytest.mark.parametrize(
    ("priority", "kernel"),
    [
        ("NORMAL:-VERS-ALL:+VERS-TLS1.1", False),
        ("NORMAL:-VERS-ALL:+VERS-TLS1.1", True),
        ("NORMAL:-VERS-ALL:+VERS-TLS1.3", True),
        ("NORMAL:-VERS-ALL:+VERS-TLS1.2:-CIPHER-ALL:+AES-256-CBC", True),
    ],
)
def test_server_with_nothing_in_common_closes_and_may_say_so(pki: Path, priority: str, kernel: bool) -> None:
    creds = f"tls-creds-x509,id=tls0,endpoint=server,dir={pki}/good,verify-peer=no,priority={priority}"
    with qemu_nbd(str(pki / "disk.img"), "--object", creds, "--tls-creds", "tls0") as server:
        told = error_of(server, "qemu-nbd", pki, kernel, ca=ca(pki))
    closed = (
        5,
        "the server closed the connection in the TLS handshake",
        "does it support TLS 1.2 with AES-GCM or ChaCha20-Poly1305? does it require a pre-shared key (--tls-psk)? "
        "--tls-transport relay supports more"
        if kernel
        else "does it support TLS 1.2 or later? does it require a pre-shared key (--tls-psk)?",
    )
    # qemu-nbd from 10 on sends the alert of its TLS if there is one: if all versions of the client are too new.
    alerted = (5, "the server does not support TLS 1.2 or later", "older versions are not safe: update the server")
    assert told == closed or (not kernel and told == alerted)


@pytest.mark.row(8)
def test_ipv6_address_is_verified(pki: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with nbdkit("--tls=require", f"--tls-certificates={pki}/good", "memory", "1M", address="::1") as server:
        target = with_tls(parse_target(f"[::1]:{server.place[1]}"), ca=ca(pki))
        assert client.check(target, attachable, SOON).error is None


# -- pre-shared keys ---------------------------------------------------------------------------------------------------

KEYS = "alice:" + "ab" * 32 + "\nbob:" + "cd" * 32 + "\n"


@contextlib.contextmanager
def with_keys(kind: str, pki: Path) -> Iterator[Server]:
    folder = pki / "keys"
    folder.mkdir(exist_ok=True)
    (folder / "keys.psk").write_text(KEYS)
    if kind == "nbdkit":
        with nbdkit("--tls=require", f"--tls-psk={folder}/keys.psk", "memory", "1M") as server:
            yield server
    else:
        creds = f"tls-creds-psk,id=tls0,endpoint=server,dir={folder}"
        with qemu_nbd(str(pki / "disk.img"), "--object", creds, "--tls-creds", "tls0") as server:
            yield server


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python has no pre-shared keys before 3.13")
@pytest.mark.row(8)
@pytest.mark.parametrize("kind", ["nbdkit", "qemu-nbd"])
@pytest.mark.parametrize("line", ["bob:" + "cd" * 32, "alice:" + "cd" * 32, "mallory:" + "ab" * 32])
def test_server_with_keys(pki: Path, tmp_path: Path, kind: str, line: str, kernel: bool) -> None:
    file = tmp_path / "key"
    file.write_text(line)
    with with_keys(kind, pki) as server:
        if line + "\n" in KEYS:
            target = with_tls(parse_target(server.uri), psk=str(file))
            client.connect(target, SOON, kernel_tls=kernel).stream.close()
            return
        told = error_of(server, kind, pki, kernel, psk=str(file))
    user = line.partition(":")[0]
    cause = f"the server closed the connection instead of accepting the key of '{user}' from {file}"
    assert told == (5, cause, "does it have the same line in its file?")


@pytest.mark.row(8)
@pytest.mark.parametrize("kind", ["nbdkit", "qemu-nbd"])
def test_server_that_wants_a_key_is_told_of_the_option(pki: Path, kind: str, kernel: bool) -> None:
    with with_keys(kind, pki) as server:
        code, cause, hint = error_of(server, kind, pki, kernel, ca=ca(pki))
    assert (code, cause) == (5, "the server closed the connection in the TLS handshake")
    assert "does it require a pre-shared key (--tls-psk)?" in hint
