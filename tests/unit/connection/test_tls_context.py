# SPDX-License-Identifier: GPL-2.0-or-later
"""What we offer a server, trust and show it: the policy of the machine, files, and pre-shared keys."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wire
from peer import Serve, listening
from tlsclient import NO_WAY, V2, V3, failure, told, trusting
from tlspeer import context, secure

from nbdattach.connection import client, tls, tls_context
from nbdattach.errors import NotInKernel, TlsFailed
from nbdattach.protocol.target import Target, parse_target, with_tls

# -- the policy of the machine, and its kernel -------------------------------------------------------------------------


def strict(protocol: int) -> ssl.SSLContext:
    """As where openssl.cnf says so."""
    made = ssl.SSLContext(protocol)
    made.minimum_version = V3
    made.set_ciphers("DEFAULT@SECLEVEL=3")
    return made


@pytest.mark.row(8)
def test_policy_of_the_machine_is_kept(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_context, "ssl", SimpleNamespace(**{**vars(ssl), "SSLContext": strict}))
    context = tls.Handshake(trusting(pki, Target("db1")), False)._context
    assert (context.minimum_version, context.security_level) == (V3, 3)
    with pytest.raises(NotInKernel) as caught:
        tls.Handshake(trusting(pki, Target("db1")), True)
    assert caught.value.cause == "the policy of this machine requires TLS 1.3, and kernel transport needs 1.2"


@pytest.mark.row(8)
def test_security_level_is_the_same_for_the_kernel(pki: Path) -> None:
    relay, kernel = (tls.Handshake(trusting(pki, Target("db1")), one)._context for one in (False, True))
    assert kernel.security_level == relay.security_level >= 1


CRYPTO = {
    "in C": ("aes-generic", "gcm_base(ctr(aes-generic),ghash-generic)", True),
    "fixed time": ("aes-generic", "ctr(aes-fixed-time)", True),
    "aesni": ("aes-generic", "generic-gcm-aesni", False),
    "arm": ("aes-generic", "gcm-aes-ce", False),
    "library": ("aes-lib", "gcm(aes-lib)", False),
}


@pytest.mark.parametrize("which", CRYPTO)
def test_the_kernel_is_asked_for_what_it_is_fast_at(
    pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    aes, gcm, slow = CRYPTO[which]
    blocks = [("gcm(aes)", gcm), ("stdrng", "drbg_nopr_ctr_aes256"), ("aes", aes), ("rfc7539(chacha20,poly1305)", "x")]
    (tmp_path / "crypto").write_text(
        "\n".join(f"name         : {name}\ndriver       : {driver}\nmodule       : kernel\n" for name, driver in blocks)
    )
    monkeypatch.setattr(tls_context, "_CRYPTO", str(tmp_path / "crypto"))
    made = tls.Handshake(trusting(pki, Target("db1")), True)._context
    first = next(one["name"] for one in made.get_ciphers() if one["protocol"] == "TLSv1.2")
    assert ("CHACHA20" in first, "AES" in first) == (slow, not slow)
    monkeypatch.setattr(tls_context, "_CRYPTO", str(tmp_path / "none"))
    made = tls.Handshake(trusting(pki, Target("db1")), True)._context
    assert "AES" in next(one["name"] for one in made.get_ciphers() if one["protocol"] == "TLSv1.2")


# -- files -------------------------------------------------------------------------------------------------------------

SPELLED = "is the name correct, and do you have permission to read it?"
SCRAPS = {"empty": "", "text": "hello\n", "damaged": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}
FILES: dict[str, tuple[dict[str, str], str, str, str]] = {
    "missing": ({"ca": "none"}, "none", "cannot be read: No such file or directory", SPELLED),
    "no ca in directory": ({"ca": "other"}, "", "", ""),
    "empty directory": (
        {"ca": "empty-folder"}, "empty-folder/ca-cert.pem", "cannot be read: No such file or directory", SPELLED,
    ),
    "empty": (
        {"ca": "empty"}, "empty", "contains no certificate in PEM format",
        "a PEM file has a line -----BEGIN CERTIFICATE-----",
    ),
    "text": (
        {"ca": "text"}, "text", "contains no certificate in PEM format",
        "a PEM file has a line -----BEGIN CERTIFICATE-----",
    ),
    "a key": (
        {"ca": "good/server-key.pem"}, "good/server-key.pem", "contains no certificate in PEM format",
        "a PEM file has a line -----BEGIN CERTIFICATE-----",
    ),
    "damaged": (
        {"ca": "damaged"}, "damaged", "damaged: OpenSSL cannot use it",
        "openssl x509 -in FILE -text shows a certificate",
    ),
    "certificate missing": ({"cert": "none"}, "none", "cannot be read: No such file or directory", SPELLED),
    "certificate is a directory": ({"cert": "client"}, "client", "cannot be read: Is a directory", SPELLED),
    "no key with it": (
        {"cert": "client/client-cert.pem"}, "client/client-cert.pem", "contains no key in PEM format",
        "a PEM file has a line -----BEGIN PRIVATE KEY-----",
    ),
    "key missing": (
        {"cert": "client/client-cert.pem", "key": "none"}, "none", "cannot be read: No such file or directory", SPELLED,
    ),
    "key of another": (
        {"cert": "client/client-cert.pem", "key": "stranger/client-key.pem"}, "stranger/client-key.pem",
        "this key does not belong to the certificate PKI/client/client-cert.pem",
        "--tls-cert and --tls-key are made together",
    ),
    "key with a password": (
        {"cert": "locked/client-cert.pem", "key": "locked/client-key.pem"}, "locked/client-key.pem",
        "the key has a password", "remove the password: openssl pkey -in FILE -out NEW",
    ),
    "damaged certificate": (
        {"cert": "damaged", "key": "client/client-key.pem"}, "damaged or PKI/client/client-key.pem",
        "damaged: OpenSSL cannot use it", "openssl x509 -in FILE -text shows a certificate",
    ),
}  # fmt: skip
del FILES["no ca in directory"]


@pytest.mark.row(8)
@pytest.mark.parametrize("which", FILES)
def test_file_that_cannot_be_used_is_named(pki: Path, which: str) -> None:
    given, thing, cause, hint = FILES[which]
    for name, text in SCRAPS.items():
        (pki / name).write_text(text)
    (pki / "empty-folder").mkdir(exist_ok=True)
    with pytest.raises(TlsFailed) as caught:
        tls.Handshake(trusting(pki, Target("db1"), **{what: str(pki / file) for what, file in given.items()}), True)
    error = caught.value
    assert str(error).replace(str(pki), "PKI") == f"PKI/{thing}: {cause}"
    assert (error.exit_code, error.hint) == (5, hint)


@pytest.mark.row(8)
def test_unreadable_file_is_named(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so the kernel's answer is played."""

    def refuse(path: str, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(TlsFailed) as caught:
        tls.Handshake(trusting(pki, Target("db1")), False)
    monkeypatch.undo()
    assert str(caught.value) == f"{pki}/good/ca-cert.pem: cannot be read: Permission denied"


@pytest.mark.row(8)
@pytest.mark.parametrize("option", ["ca", "uri"])
def test_directory_has_all_that_is_needed(pki: Path, option: str) -> None:
    with listening(secure(context(pki / "good", clients=True))) as place:
        if option == "ca":
            target = with_tls(place, ca=str(pki / "client"))
        else:
            target = parse_target(f"nbds://127.0.0.1:{place.port}?tls-certificates={pki}/client")
        assert client.inspect(target).export.size == wire.SIZE


@pytest.mark.row(8)
def test_key_may_be_in_the_file_of_the_certificate(pki: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_text("".join((pki / "client" / f"client-{what}.pem").read_text() for what in ("key", "cert")))
    with listening(secure(context(pki / "good", clients=True))) as place:
        assert client.inspect(trusting(pki, place, cert=str(both))).export.size == wire.SIZE


def test_renewed_file_is_seen_by_the_next_connection(pki: Path, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    with listening(secure(context(pki / "good"))) as place:
        for which, code in (("other", 5), ("ours", 0), ("other", 5)):
            ca.write_bytes((pki / which / "ca-cert.pem").read_bytes())
            target = trusting(pki, place, ca=str(ca))
            if code:
                assert failure(target).exit_code == code
            else:
                client.inspect(target)


# -- pre-shared keys ---------------------------------------------------------------------------------------------------

needs_psk = pytest.mark.skipif(sys.version_info < (3, 13), reason="Python has no pre-shared keys before 3.13")
ALICE = "alice:" + "ab" * 32


def with_keys(folder: Path, text: str | bytes) -> Target:
    (folder / "keys").write_bytes(text if isinstance(text, bytes) else text.encode())
    return with_tls(Target("db1"), psk=str(folder / "keys"))


@pytest.mark.row(8)
def test_old_python_refuses_keys_in_plain_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_context, "hasattr", lambda *_: False, raising=False)
    with pytest.raises(TlsFailed) as caught:
        tls.Handshake(with_keys(tmp_path, ALICE), False)
    assert str(caught.value) == f"{tmp_path}/keys: pre-shared keys need Python 3.13 or later"
    assert caught.value.hint == "certificates work here: --tls-ca FILE"


@needs_psk
@pytest.mark.row(8)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "alice",
        "alice:",
        "alice:xyz",
        "alice:abc",
        ":" + "ab" * 16,
        b"\xff\xfe\0",
        "#alice:" + "ab" * 32,
        "a" * 129 + ":ab",
        "a:" + "ab" * 257,
    ],
)
def test_malformed_file_of_keys_is_told(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(TlsFailed) as caught:
        tls.Handshake(with_keys(tmp_path, text), False)
    assert str(caught.value) == f"{tmp_path}/keys: no line USER:KEY with a hexadecimal key"
    assert caught.value.hint == "openssl rand -hex 32 makes a key"


@needs_psk
@pytest.mark.row(8)
def test_missing_file_of_keys_is_told(tmp_path: Path) -> None:
    with pytest.raises(TlsFailed) as caught:
        tls.Handshake(with_tls(Target("db1"), psk=str(tmp_path / "none")), False)
    assert str(caught.value) == f"{tmp_path}/none: cannot be read: No such file or directory"


def key_server(tmp_path: Path, keys: dict[str, str]) -> Serve:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.maximum_version = V2
    made.set_ciphers("PSK")
    made.set_psk_server_callback(lambda user: bytes.fromhex(keys.get(user, "")))  # type: ignore[attr-defined]
    return secure(made)


@needs_psk
@pytest.mark.row(8)
def test_right_key_is_enough(tmp_path: Path) -> None:
    with listening(key_server(tmp_path, {"alice": "ab" * 32})) as place:
        keys = with_keys(tmp_path, "# a comment\n\n#old:cdcd\n" + ALICE + "\nbob:cd").tls_psk_file
        found = client.inspect(with_tls(place, psk=keys))
    assert found.export.size == wire.SIZE
    assert found.tls is not None
    assert (found.tls[0], "PSK" in found.tls[1], found.certificate) == ("TLSv1.2", True, None)


@needs_psk
@pytest.mark.row(8)
@pytest.mark.parametrize("keys", [{"alice": "cd" * 32}, {"bob": "ab" * 32}])
def test_wrong_key_and_unknown_user_are_told(tmp_path: Path, keys: dict[str, str]) -> None:
    with listening(key_server(tmp_path, keys)) as place:
        error = failure(with_tls(place, psk=with_keys(tmp_path, ALICE).tls_psk_file))
    assert error.exit_code == 5
    assert error.cause.startswith(f"the server does not accept the key of 'alice' from {tmp_path}/keys (")
    assert error.hint == "does it have the same line in its file?"


@needs_psk
@pytest.mark.row(8)
def test_server_without_keys_is_told(pki: Path, tmp_path: Path) -> None:
    with listening(secure(context(pki / "good"))) as place:
        error = failure(with_tls(place, psk=with_keys(tmp_path, ALICE).tls_psk_file))
    assert told(error, pki) == (5, NO_WAY, "does it support pre-shared keys with TLS 1.2?")
