# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS to faulty servers: each failure has its exit code, its line and its hint, whole."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wire
from hypothesis import given
from hypothesis import strategies as st
from peer import Serve, listening
from tlsclient import NO_TLS, NO_WAY, NOT_VERIFIED, OTHER_NAME, V2, V3, failure, ours_from, told, trusting
from tlspeer import EXPORT, after_yes, answers_hello, context, secure

from nbdattach.cli import main
from nbdattach.connection import certificate, client, openssl_errors, stream, tls
from nbdattach.errors import ConnectionLost, MaybeNotInKernel, TlsFailed
from nbdattach.protocol.target import Target, with_tls

Capture = pytest.CaptureFixture[str]


# -- trust in the server -----------------------------------------------------------------------------------------------

WHOM = "--tls-ca FILE sets the trusted authorities"
UNVERIFIED = {
    "expired": ("expired 2020-02-01T00:00:00Z", "the server needs a new one; is the clock right?"),
    "future": ("is not valid before 2999-01-01T00:00:00Z", "is the clock right here? see date"),
    "elsewhere": (
        "is for 'db2.example', '*.db3.example', '10.0.0.1', '2001:db8::1', not for '127.0.0.1'",
        OTHER_NAME,
    ),
    "common": ("is for 'db4', not for '127.0.0.1'", OTHER_NAME),
    "many": ("is for 'h0', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'h7', ..., not for '127.0.0.1'", OTHER_NAME),
    "hostile": (r"is for '\\x1b[2J\\u202e\'', not for '127.0.0.1'", OTHER_NAME),
    "self": ("is self-signed", "to trust it, give this certificate: --tls-ca FILE"),
    "unknown": ("was issued by 'other-ca', and no authority in PKI/good/ca-cert.pem has signed it", WHOM),
    "weak": ("cannot be used: EE certificate key too weak", "openssl x509 -text shows its contents"),
    "namesake": ("was issued by 'test-ca', and no authority in PKI/good/ca-cert.pem has signed it", WHOM),
}


@pytest.mark.row(8)
@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("which", UNVERIFIED)
def test_server_that_is_not_verified_is_told_why(pki: Path, which: str, kernel: bool) -> None:
    cause, hint = UNVERIFIED[which]
    with listening(secure(context(pki / which))) as place:
        error = failure(trusting(pki, place), kernel)
    assert type(error) is TlsFailed
    assert told(error, pki) == (5, NOT_VERIFIED + cause, hint)


@pytest.mark.row(8)
def test_authority_that_has_expired_is_told_from_an_expired_certificate(pki: Path) -> None:
    with listening(secure(context(pki / "outdated"))) as place:
        error = failure(trusting(pki, place, ca=str(pki / "old" / "ca-cert.pem")))
    cause = "the server is not verified: an authority above its certificate has expired"
    assert told(error, pki) == (5, cause, "the server and --tls-ca need a new one")


@pytest.mark.row(8)
def test_without_a_ca_the_systems_authorities_decide(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(secure(context(pki / "good"))) as place:
        monkeypatch.setenv("SSL_CERT_FILE", str(pki / "other" / "ca-cert.pem"))
        error = failure(with_tls(place, required=True))
        monkeypatch.setenv("SSL_CERT_FILE", str(pki / "good" / "ca-cert.pem"))
        client.inspect(with_tls(place, required=True))
    cause = NOT_VERIFIED + "was issued by 'test-ca', and no authority that this machine trusts has signed it"
    assert told(error, pki) == (5, cause, WHOM)


@pytest.mark.row(8)
def test_revoked_server_is_refused_where_the_directory_says_so(pki: Path) -> None:
    with listening(secure(context(pki / "revoked"))) as place:
        error = failure(trusting(pki, place, ca=str(pki / "revoked")))
        client.inspect(trusting(pki, place))
    cause = NOT_VERIFIED + "is revoked by PKI/revoked/ca-crl.pem"
    assert told(error, pki) == (5, cause, "the server needs a new one")


@pytest.mark.row(8)
def test_list_of_another_authority_does_not_pass_for_one(pki: Path, tmp_path: Path) -> None:
    (tmp_path / "ca-cert.pem").write_bytes((pki / "other" / "ca-cert.pem").read_bytes())
    (tmp_path / "ca-crl.pem").write_bytes((pki / "revoked" / "ca-crl.pem").read_bytes())
    with listening(secure(context(pki / "unknown"))) as place:
        error = failure(trusting(pki, place, ca=str(tmp_path)))
    what = f"the list of revoked certificates {tmp_path}/ca-crl.pem is from another authority"
    hint = "the authority that issued its certificate has a newer one"
    assert told(error, pki) == (5, f"the server is not verified: {what}", hint)


@pytest.mark.row(8)
@pytest.mark.parametrize("options", [{}, {"ca": "client"}, {"ca": None, "required": True}])
def test_no_verify_accepts_any_certificate(pki: Path, options: dict[str, Any]) -> None:
    options = {**options, **({"ca": str(pki / "client")} if options.get("ca") else {})}
    with listening(secure(context(pki / "self"))) as place:
        assert client.inspect(trusting(pki, place, verify=False, **options)).export.size == wire.SIZE


WARNING = (
    "nbdattach: warning: the server is not verified (--tls-no-verify): "
    "an attacker on the network path can read and change all data\n"
)


@pytest.mark.row(8)
@pytest.mark.parametrize("command", ["info", "check"])
def test_no_verify_warns_each_time_also_with_a_certificate_of_ours(pki: Path, capsys: Capture, command: str) -> None:
    ours = ["--tls-cert", str(pki / "client" / "client-cert.pem"), "--tls-key", str(pki / "client" / "client-key.pem")]
    said = EXPORT + wire.simple_reply(0, client.CHECK_COOKIE) + bytes(4096) if command == "check" else None
    with listening(secure(context(pki / "good", clients=True), said)) as place:
        for _ in range(2):
            assert main.run([command, "--tls-no-verify", *ours, place.uri]) == 0
            assert capsys.readouterr().err == WARNING


# -- who we are --------------------------------------------------------------------------------------------------------

SHOW = "--tls-cert FILE and --tls-key FILE give one"
FROM = "is it from an authority that the server trusts? see the server's log"
WANTS = "the server requires a client certificate, and none was given"
NOT_OURS = "the server does not accept the client certificate PKI/"


def until(pki: Path, which: str) -> str:
    return certificate.describe_file(str(pki / which / "client-cert.pem")).until


@pytest.mark.row(8)
@pytest.mark.parametrize(
    ("version", "which", "cause", "hint"),
    [
        (V2, "", WANTS + " (it ended the handshake)", SHOW),
        (V3, "", WANTS + " (certificate required)", SHOW),
        (
            V2,
            "stranger",
            NOT_OURS + "stranger/client-cert.pem, issued by 'other-ca', valid until {} (unknown ca)",
            FROM,
        ),
        (
            V3,
            "stranger",
            NOT_OURS + "stranger/client-cert.pem, issued by 'other-ca', valid until {} (unknown ca)",
            FROM,
        ),
        (V2, "late", NOT_OURS + "late/client-cert.pem, issued by 'test-ca', expired {} (certificate expired)", FROM),
        (V3, "late", NOT_OURS + "late/client-cert.pem, issued by 'test-ca', expired {} (certificate expired)", FROM),
    ],
)
def test_server_that_does_not_like_us_is_told_what_it_saw(
    pki: Path, version: ssl.TLSVersion, which: str, cause: str, hint: str
) -> None:
    """In TLS 1.3 the server reports it only after the handshake."""
    with listening(secure(context(pki / "good", version, clients=True))) as place:
        error = failure(trusting(pki, place, **ours_from(pki, which)))
    assert type(error) is TlsFailed
    assert told(error, pki) == (5, cause.format(until(pki, which) if which else ""), hint)


def closes_after_handshake(made: ssl.SSLContext) -> Serve:
    """As servers with GnuTLS do: without a word of TLS."""
    return after_yes(lambda sock: made.wrap_socket(sock, server_side=True).close())


@pytest.mark.row(8)
@pytest.mark.parametrize("version", [V2, V3])
@pytest.mark.parametrize("which", ["", "client"])
def test_server_that_leaves_once_it_knows_who_we_are(pki: Path, version: ssl.TLSVersion, which: str) -> None:
    made = context(pki / "good", version, clients=True)
    made.verify_mode = ssl.CERT_OPTIONAL
    with listening(closes_after_handshake(made)) as place:
        error = failure(trusting(pki, place, **ours_from(pki, which)))
    if which:
        ours = f"PKI/client/client-cert.pem, issued by 'test-ca', valid until {until(pki, which)}"
        expected = (5, f"the server closed the connection after it received the client certificate {ours}", FROM)
    else:
        expected = (5, "the server asked for a client certificate, got none, and closed the connection", SHOW)
    assert told(error, pki) == expected


@pytest.mark.row(8)
@pytest.mark.parametrize("version", [V2, V3])
def test_server_that_asks_for_nothing_and_leaves_is_a_lost_connection(pki: Path, version: ssl.TLSVersion) -> None:
    with listening(closes_after_handshake(context(pki / "good", version))) as place:
        assert type(failure(trusting(pki, place))) is ConnectionLost


@pytest.mark.row(8)
def test_server_that_leaves_later_is_a_lost_connection(pki: Path) -> None:
    """It has spoken inside TLS, so it likes us."""

    def leave(sock: socket.socket) -> None:
        with made.wrap_socket(sock, server_side=True) as inside:
            inside.recv(4096)
            inside.sendall(EXPORT[:-1])

    made = context(pki / "good", clients=True)
    with listening(after_yes(leave)) as place:
        assert type(failure(trusting(pki, place, **ours_from(pki, "client")))) is ConnectionLost


# -- ends of a connection: the same words in all of OpenSSL's ways -----------------------------------------------------


def ssl_error(kind: type[ssl.SSLError], number: int, reason: str | None) -> ssl.SSLError:
    """As _ssl makes it; `reason` is None if OpenSSL has none."""
    made = kind(number, f"[SSL: {reason}] words (_ssl.c:1006)" if reason else "words (_ssl.c:1006)")
    if reason:
        made.reason = reason
    return made


EOF = "UNEXPECTED_EOF_WHILE_READING"
ENDED: list[OSError] = [
    ssl_error(ssl.SSLEOFError, ssl.SSL_ERROR_EOF, None),
    ssl_error(ssl.SSLEOFError, ssl.SSL_ERROR_EOF, EOF),
    ssl_error(ssl.SSLZeroReturnError, ssl.SSL_ERROR_ZERO_RETURN, None),
    ssl_error(ssl.SSLError, ssl.SSL_ERROR_SYSCALL, EOF),  # OpenSSL 3.5, after a send that failed
    ssl_error(ssl.SSLError, ssl.SSL_ERROR_SSL, EOF),
    ssl_error(ssl.SSLError, ssl.SSL_ERROR_SYSCALL, None),  # "Some I/O error occurred"
    ssl_error(ssl.SSLSyscallError, ssl.SSL_ERROR_SYSCALL, None),
    ssl.SSLError(ssl.SSL_ERROR_SYSCALL, "unexpected eof while reading (_ssl.c:1006)"),  # of which Python knows no name
    BrokenPipeError(32, "Broken pipe"),
    ConnectionResetError(104, "Connection reset by peer"),
]
NOT_ENDED: list[tuple[OSError, str]] = [
    (ssl_error(ssl.SSLError, ssl.SSL_ERROR_SSL, "TLSV1_ALERT_UNKNOWN_CA"), "(unknown ca)"),
    (ssl_error(ssl.SSLError, ssl.SSL_ERROR_SYSCALL, "TLSV1_ALERT_UNKNOWN_CA"), "(unknown ca)"),  # OpenSSL 3.5
    (ssl_error(ssl.SSLError, ssl.SSL_ERROR_SYSCALL, "TLSV1_ALERT_INTERNAL_ERROR"), "ended TLS: internal error"),
    (ssl_error(ssl.SSLError, ssl.SSL_ERROR_SSL, "WRONG_VERSION_NUMBER"), "is not TLS"),
]


@pytest.mark.row(8)
@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("error", ENDED, ids=repr)
def test_end_of_the_connection_in_the_handshake_is_told_in_our_words(error: OSError, kernel: bool) -> None:
    handshake = tls.Handshake(Target("db1", tls=True), kernel)
    told = handshake.failures.of(error)
    assert (type(told), told.cause) == (
        MaybeNotInKernel if kernel else TlsFailed,
        "the server closed the connection in the TLS handshake",
    )
    assert openssl_errors.has_ended(error)
    assert not openssl_errors.is_of_tls(error)


@pytest.mark.row(8)
@pytest.mark.parametrize(("error", "words"), NOT_ENDED, ids=repr)
def test_what_the_server_said_before_it_left_is_no_mere_end(error: OSError, words: str) -> None:
    handshake = tls.Handshake(Target("db1", tls=True), False)
    assert words in handshake.failures.of(error).cause
    assert openssl_errors.is_of_tls(error)


@pytest.mark.row(8)
def test_network_that_breaks_in_the_handshake_is_a_lost_connection(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", breaks)
    with listening(answers_hello(b"")) as place:
        error = failure(trusting(pki, place))
    assert (type(error), error.cause) == (
        ConnectionLost,
        "the server closed the connection (TLS handshake: No route to host)",
    )


def resets(inside: ssl.SSLSocket) -> None:
    inside.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    inside.close()


def says_goodbye(inside: ssl.SSLSocket) -> None:
    inside.setblocking(False)
    with contextlib.suppress(ssl.SSLWantReadError):
        inside.unwrap()
    inside.close()


class Leaver:
    """A server that has left before the client says its first word in TLS."""

    def __init__(self, made: ssl.SSLContext, leave: Callable[[ssl.SSLSocket], None]) -> None:
        self._made, self._leave = made, leave
        self.gone = threading.Event()

    def serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(ssl.SSLError):  # it has refused our certificate, and said so
            self._leave(self._made.wrap_socket(sock, server_side=True))
        sock.close()
        self.gone.set()


@pytest.fixture(params=["tcp", "unix"])
def place_of(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "socket" if request.param == "unix" else None


@pytest.fixture(params=["at once", "in two pieces"])
def after(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Leaver], None]:
    """Has the client wait until the server has left. Of two pieces that it sends then, the second may fail alone."""

    def wait_for(server: Leaver) -> None:
        send = stream.Stream._send

        def late(self: stream.Stream, data: bytes) -> None:
            if self._tls:
                assert server.gone.wait(60)
                if request.param == "in two pieces":
                    send(self, data[:1])
                    time.sleep(0.02)  # for the answer to that, which is a reset
                    data = data[1:]
            send(self, data)

        monkeypatch.setattr(stream.Stream, "_send", late)

    return wait_for


LEAVES = {"closes": ssl.SSLSocket.close, "resets": resets, "says goodbye": says_goodbye}


@pytest.mark.row(8)
@pytest.mark.parametrize("leave", LEAVES)
@pytest.mark.parametrize("version", [V2, V3])
@pytest.mark.parametrize("which", ["", "client", "not asked"])
def test_server_that_has_left_before_our_first_word_is_told_in_our_words(
    pki: Path,
    place_of: Path | None,
    after: Callable[[Leaver], None],
    version: ssl.TLSVersion,
    leave: str,
    which: str,
) -> None:
    made = context(pki / "good", version, clients=which != "not asked")
    if which != "not asked":
        made.verify_mode = ssl.CERT_OPTIONAL
    server = Leaver(made, LEAVES[leave])
    after(server)
    ours = ours_from(pki, "client") if which == "client" else {}
    with listening(after_yes(server.serve), place_of) as place:
        error = failure(trusting(pki, place, hostname="localhost", **ours))
    ours_is = f"PKI/client/client-cert.pem, issued by 'test-ca', valid until {until(pki, 'client')}"
    assert (
        told(error, pki)[:2]
        == {
            "": (5, "the server asked for a client certificate, got none, and closed the connection"),
            "client": (5, f"the server closed the connection after it received the client certificate {ours_is}"),
            "not asked": (3, "the server closed the connection (NBD_OPT_GO, 12 bytes of data)"),
        }[which]
    )


@pytest.mark.row(8)
@pytest.mark.parametrize("version", [V2, V3])
@pytest.mark.parametrize("which", ["stranger", "late"])
def test_reason_of_a_server_that_has_left_before_our_first_word_is_told(
    pki: Path, place_of: Path | None, after: Callable[[Leaver], None], version: ssl.TLSVersion, which: str
) -> None:
    server = Leaver(context(pki / "good", version, clients=True), ssl.SSLSocket.close)
    after(server)
    with listening(after_yes(server.serve), place_of) as place:
        error = failure(trusting(pki, place, hostname="localhost", **ours_from(pki, which)))
    assert error.cause.startswith("the server does not accept the client certificate ")
    assert error.cause.endswith({"stranger": "(unknown ca)", "late": "(certificate expired)"}[which])


# -- versions and ciphers ----------------------------------------------------------------------------------------------

KERNEL_HINT = (
    "does it support TLS 1.2 with AES-GCM or ChaCha20-Poly1305? does it require a pre-shared key (--tls-psk)? "
    "--tls-transport relay supports more"
)


@pytest.mark.row(8)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
@pytest.mark.parametrize(
    ("kernel", "version", "ciphers", "cause", "hint"),
    [
        (
            True, V3, "", "the server does not support TLS 1.2, which kernel transport needs",
            "if it supports only TLS 1.3: --tls-transport relay",
        ),
        (
            False, ssl.TLSVersion.TLSv1_1, "ALL", "the server does not support TLS 1.2 or later",
            "older versions are not safe: update the server",
        ),
        (
            True, ssl.TLSVersion.TLSv1_1, "ALL", NO_WAY, KERNEL_HINT,
        ),
        (True, V2, "ECDHE-ECDSA-AES128-SHA256", NO_WAY, KERNEL_HINT),
        (
            False, V2, "ADH-AES128-SHA256", NO_WAY,
            "does it support TLS 1.2 or later? does it require a pre-shared key (--tls-psk)?",
        ),
    ],
)  # fmt: skip
def test_nothing_in_common_is_told(
    pki: Path, kernel: bool, version: ssl.TLSVersion, ciphers: str, cause: str, hint: str
) -> None:
    with listening(secure(context(pki / "good", version, ciphers))) as place:
        error = failure(trusting(pki, place), kernel)
    assert told(error, pki) == (5, cause, hint)


@pytest.mark.row(8)
@pytest.mark.parametrize("kernel", [False, True])
def test_server_that_closes_on_our_first_word(pki: Path, kernel: bool) -> None:
    """A server with GnuTLS reports no more about its ciphers."""
    with listening(after_yes(lambda sock: sock.recv(4096))) as place:
        error = failure(trusting(pki, place), kernel)
    hint = KERNEL_HINT if kernel else "does it support TLS 1.2 or later? does it require a pre-shared key (--tls-psk)?"
    assert told(error, pki) == (5, "the server closed the connection in the TLS handshake", hint)


@pytest.mark.row(8)
@pytest.mark.parametrize(
    ("junk", "told"),
    [
        (bytes(64), NO_TLS),
        (b"HTTP/1.1 400 Bad\r\n\r\n", NO_TLS),
        (EXPORT, NO_TLS),
        (b"\x15\x03\x03\x00\x02\x02\x50", ("the server ended TLS: internal error", "see the server's log")),
        (b"\x15\x03\x03\x00\x02\x02\x5a", ("the server ended TLS: user cancelled", "see the server's log")),
        (
            b"\x15\x03\x03\x00\x02\x02\x28",
            (NO_WAY, "does it support TLS 1.2 or later? does it require a pre-shared key (--tls-psk)?"),
        ),
    ],
)
def test_junk_in_answer_to_our_first_word(pki: Path, junk: bytes, told: tuple[str, str]) -> None:
    with listening(answers_hello(junk)) as place:
        error = failure(trusting(pki, place))
    assert (error.exit_code, error.cause, error.hint) == (5, *told)


@pytest.mark.row(8)
@given(junk=st.binary(min_size=1, max_size=200), alert=st.booleans())
def test_any_junk_is_an_error_of_ours(junk: bytes, alert: bool) -> None:
    """Through a pair of sockets, as fast as can be."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"\x15\x03\x03\x00\x02" + junk if alert else junk)
        theirs.shutdown(socket.SHUT_WR)
        ours.settimeout(60)
        with pytest.raises(TlsFailed) as caught:
            tls.Handshake(Target("db1", tls=True, tls_verify=False), False).over(ours, "db1")
        assert str(caught.value).isprintable()


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_info_shows_the_certificate(pki: Path, capsys: Capture) -> None:
    with listening(secure(context(pki / "good", V2, "ECDHE-ECDSA-AES128-GCM-SHA256"))) as place:
        arguments = ["info", "--tls-ca", str(pki / "good"), place.uri]
        assert main.run(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert main.run([*arguments, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
    until = certificate.describe_file(str(pki / "good" / "server-cert.pem")).until
    assert lines[0] == f"target:      nbds://127.0.0.1:{place.port}"
    assert lines[-2:] == [
        "tls:         TLSv1.2 ECDHE-ECDSA-AES128-GCM-SHA256",
        f"certificate: for localhost, 127.0.0.1, ::1, until {until}",
    ]
    assert found["tls"] == {
        "version": "TLSv1.2",
        "cipher": "ECDHE-ECDSA-AES128-GCM-SHA256",
        "names": ["localhost", "127.0.0.1", "::1"],
        "expires": until,
    }


@pytest.mark.row(8)
@pytest.mark.parametrize("command", ["list", "info", "check"])
def test_failure_on_the_command_line_is_one_line_and_one_hint(pki: Path, capsys: Capture, command: str) -> None:
    with listening(secure(context(pki / "expired"))) as place:
        assert main.run([command, "--tls-ca", str(pki / "good"), place.uri]) == 5
    said = capsys.readouterr()
    assert said.out == ""
    line = f"nbdattach: nbds://127.0.0.1:{place.port}: {NOT_VERIFIED}expired 2020-02-01T00:00:00Z\n"
    assert said.err == line + "(the server needs a new one; is the clock right?)\n"


# -- internals of Python -----------------------------------------------------------------------------------------------


class Forbidden:
    """A private name of Python's that has gone."""

    def __get__(self, *_: object) -> Any:
        raise AttributeError

    def __set__(self, *_: object) -> None:
        raise AttributeError


FEWER: dict[str, str] = {
    "expired": NOT_VERIFIED + "expired",
    "future": NOT_VERIFIED + "is not valid yet",
    "elsewhere": NOT_VERIFIED + "is not for '127.0.0.1'",
    "self": NOT_VERIFIED + "is self-signed",
    "unknown": NOT_VERIFIED + "is not trusted: no authority in PKI/good/ca-cert.pem has signed it",
}


@pytest.mark.parametrize("gone", ["_msg_callback", "_test_decode_cert", "memfd_create"])
@pytest.mark.parametrize("which", FEWER)
def test_without_private_names_of_python_the_words_are_fewer(
    pki: Path, monkeypatch: pytest.MonkeyPatch, gone: str, which: str
) -> None:
    def fail(*_: Any) -> Any:
        raise OSError(24, "Too many open files")

    if gone == "_msg_callback":
        monkeypatch.setattr(ssl.SSLContext, gone, Forbidden())
    elif gone == "_test_decode_cert":
        monkeypatch.delattr(ssl._ssl, gone)  # type: ignore[attr-defined]
    else:
        monkeypatch.setattr(certificate.os, gone, fail)
    with listening(secure(context(pki / which))) as place:
        error = failure(trusting(pki, place))
    assert told(error, pki)[:2] == (5, FEWER[which])


@pytest.mark.parametrize("version", [V2, V3])
def test_without_the_messages_a_missing_certificate_is_an_error_still(
    pki: Path, monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion
) -> None:
    monkeypatch.setattr(ssl.SSLContext, "_msg_callback", Forbidden())
    with listening(secure(context(pki / "good", version, clients=True))) as place:
        assert failure(trusting(pki, place)).exit_code == 5


@given(data=st.binary())
def test_any_bytes_for_a_certificate_are_described(data: bytes) -> None:
    assert certificate.describe(data).names == []


@given(place=st.integers(0, 2000), bits=st.integers(1, 255), end=st.integers(0, 2000))
def test_broken_certificate_is_described(pki: Path, place: int, bits: int, end: int) -> None:
    der = bytearray(ssl.PEM_cert_to_DER_cert((pki / "elsewhere" / "server-cert.pem").read_text()))
    der[place % len(der)] ^= bits
    for one in (bytes(der), bytes(der[:end])):
        shown = certificate.describe(one)
        assert all(text.isprintable() for text in (*shown.names, shown.issuer, shown.since, shown.until))


ODD = st.sampled_from([None, "", "Jan 32 0:0:0 99999 GMT", 7, ((),), ("DNS",), (("DNS", 7),), ((("commonName", 7),),)])


@given(fields=st.dictionaries(st.sampled_from(["subject", "issuer", "notAfter", "subjectAltName"]), ODD))
def test_whatever_python_gives_is_described(fields: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl._ssl, "_test_decode_cert", lambda _: fields)  # type: ignore[attr-defined]
        certificate.describe_file("none")


MESSAGES = st.sampled_from([0, 2, 11, 13, None, "x"])


@given(direction=st.sampled_from(["read", "write", ""]), message=MESSAGES, data=st.binary())
def test_any_message_is_seen(direction: str, message: Any, data: bytes) -> None:
    handshake = tls.Handshake(Target("db1", tls=True, tls_verify=False), False)
    handshake.failures.note_message(None, direction, None, None, message, data)
    handshake.failures.note_message(None, direction, None, None, 11, data)
    handshake.failures.closed()


def test_certificate_is_taken_out_of_the_message_of_both_versions(pki: Path) -> None:
    der = ssl.PEM_cert_to_DER_cert((pki / "good" / "server-cert.pem").read_text())
    one = len(der).to_bytes(3, "big") + der
    for body in (len(one).to_bytes(3, "big") + one, b"\0" + (len(one) + 2).to_bytes(3, "big") + one + b"\0\0"):
        handshake = tls.Handshake(Target("db1", tls=True, tls_verify=False), False)
        handshake.failures.note_message(None, "read", None, None, 11, b"\x0b" + len(body).to_bytes(3, "big") + body)
        assert handshake.failures.certificate == der
