# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS to faulty servers: each failure has its exit code, its line and its hint, whole."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wire
from certificates import FUTURE, PAST, Authority, self_signed
from hypothesis import given
from hypothesis import strategies as st
from peer import Serve, drain, left_waiting_for, listening, says_and_hears
from tlspeer import EXPORT, STARTTLS, after_yes, answers_hello, context, secure, trickles

from nbdattach.cli import main
from nbdattach.connection import certificate, client, stream, tls
from nbdattach.errors import ConnectionLost, MaybeNotInKernel, NbdattachError, NotInKernel, TlsFailed
from nbdattach.protocol.target import Target, parse_target, with_tls

Capture = pytest.CaptureFixture[str]
V2, V3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
NOT_VERIFIED = "the server is not verified: its certificate "
FOR_LOCAL = "{pki}/good/ca-cert.pem"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of folders, each with the certificates of one server or client."""
    root = tmp_path_factory.mktemp("pki")
    ours, other = Authority(root / "ours"), Authority(root / "other", "other-ca")
    old = Authority(root / "old", "old-ca", PAST)
    again = Authority(root / "again")  # the same name, another key
    ours.issue(root / "good", "server")
    ours.issue(root / "expired", "server", valid=PAST)
    ours.issue(root / "future", "server", valid=FUTURE)
    ours.issue(
        root / "elsewhere", "server", alternatives="DNS:db2.example,DNS:*.db3.example,IP:10.0.0.1,IP:2001:db8::1"
    )
    ours.issue(root / "common", "server", name="db4", alternatives="")
    ours.issue(root / "many", "server", alternatives=",".join(f"DNS:h{number}" for number in range(300)))
    ours.issue(root / "hostile", "server", name="\x1b[2J\u202e'", alternatives="")
    ours.issue(root / "client", "client", name="me", alternatives="")
    ours.issue(root / "late", "client", name="me", alternatives="", valid=PAST)
    ours.issue(root / "locked", "client", name="me", alternatives="", password="secret")
    other.issue(root / "stranger", "client", name="me", alternatives="")
    other.issue(root / "unknown", "server")
    again.issue(root / "namesake", "server")
    old.issue(root / "outdated", "server")
    ours.issue(root / "revoked", "server")
    (root / "revoked" / "ca-crl.pem").write_bytes(ours.revoke(root / "revoked" / "server-cert.pem").read_bytes())
    ours.issue(root / "weak", "server", key=["-newkey", "rsa:1024"])
    self_signed(root / "self")
    return root


def trusting(pki: Path, place: Target, **tls: Any) -> Target:
    return with_tls(place, **{"ca": str(pki / "good" / "ca-cert.pem"), **tls})


def failure(target: Target, kernel: bool = False, seconds: float = 60) -> NbdattachError:
    with pytest.raises(NbdattachError) as caught:
        client.connect(target, seconds, kernel_tls=kernel).stream.close()
    error = caught.value
    assert str(error) == f"{error.thing}: {error.cause}"
    assert str(error).isprintable()
    assert error.hint.isprintable()
    return error


def told(error: NbdattachError, pki: Path) -> tuple[int, str, str]:
    return error.exit_code, error.cause.replace(str(pki), "PKI"), error.hint.replace(str(pki), "PKI")


# -- trust in the server -----------------------------------------------------------------------------------------------

OTHER_NAME = "--tls-hostname NAME, if it is the right server by another name"
WHOM = "--tls-ca FILE names whom to trust"
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
    "self": ("is self-signed", "--tls-ca FILE with this very certificate trusts it"),
    "unknown": ("was issued by 'other-ca', and no authority in PKI/good/ca-cert.pem has signed it", WHOM),
    "weak": ("is not good for it: EE certificate key too weak", "openssl x509 -text shows what is in one"),
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
    what = f"the list of revoked certificates {tmp_path}/ca-crl.pem is of another authority"
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
    said = EXPORT + wire.simple_reply(0, client.CHECK_COOKIE) + bytes(4096)
    with listening(secure(context(pki / "good", clients=True), said)) as place:
        for _ in range(2):
            assert main.run([command, "--tls-no-verify", *ours, place.uri]) == 0
            assert capsys.readouterr().err == WARNING


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.row(8)
def test_ipv6_address_is_verified_as_an_address(pki: Path) -> None:
    target = trusting(pki, Target("::1", 1))
    assert target.verified_name == "::1"
    ours, theirs = socket.socketpair()
    made = context(pki / "good")
    with ours, theirs:
        handshake = tls.Handshake(target, False)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = made.wrap_bio(incoming, outgoing, server_side=True)
        inside = handshake._context.wrap_bio(outgoing, incoming, server_hostname=target.verified_name)
        for one in (inside, server, inside, server):
            try:
                one.do_handshake()
            except ssl.SSLWantReadError:
                continue
        assert inside.version() == "TLSv1.3"


@pytest.mark.row(8)
@pytest.mark.parametrize(
    ("host", "name"), [("fe80::1%eth0", "fe80::1"), ("db1.", "db1"), ("db1", "db1"), ("10.0.0.1", "10.0.0.1")]
)
def test_name_to_verify_has_no_scope_and_no_last_dot(host: str, name: str) -> None:
    assert Target(host).verified_name == name


@pytest.mark.row(8)
def test_unix_socket_takes_the_name_that_is_given(pki: Path, tmp_path: Path) -> None:
    with listening(secure(context(pki / "good")), tmp_path / "s") as place:
        assert client.inspect(trusting(pki, place, hostname="localhost")).export.size == wire.SIZE
        wrong = failure(trusting(pki, place, hostname="db1"))
        none = failure(trusting(pki, place))
        assert client.inspect(trusting(pki, place, verify=False)).export.size == wire.SIZE
    cause = NOT_VERIFIED + "is for 'localhost', '127.0.0.1', '::1', not for 'db1'"
    assert told(wrong, pki) == (5, cause, OTHER_NAME)
    cause = "which name must the certificate have? a Unix socket has none"
    assert told(none, pki) == (5, cause, "--tls-hostname NAME says it")


@pytest.mark.row(8)
@pytest.mark.parametrize("name", ["a..b", ".a", "x" * 300])
def test_impossible_name_is_told(pki: Path, name: str) -> None:
    with listening(secure(context(pki / "good"))) as place:
        error = failure(trusting(pki, place, hostname=name))
    shown = name if len(name) < 200 else name[:200] + "..."
    cause = f"'{shown}' is no name that a certificate can have"
    assert told(error, pki) == (5, cause, "--tls-hostname NAME says the right one")


# -- the client's identity ---------------------------------------------------------------------------------------------

SHOW = "--tls-cert FILE and --tls-key FILE show one"
FROM = "is it from an authority that the server trusts? the server's log may tell more"
WANTS = "the server wants a certificate of ours, and we have none"
NOT_OURS = "the server does not accept our certificate PKI/"


def ours_from(pki: Path, which: str) -> dict[str, str]:
    return {what: str(pki / which / f"client-{what}.pem") for what in ("cert", "key")} if which else {}


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
        expected = (5, f"the server closed the connection when it had our certificate {ours}", FROM)
    else:
        expected = (5, "the server asked for a certificate of ours, got none, and closed the connection", SHOW)
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
    (ssl_error(ssl.SSLError, ssl.SSL_ERROR_SSL, "WRONG_VERSION_NUMBER"), "is no TLS"),
]


@pytest.mark.row(8)
@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("error", ENDED, ids=repr)
def test_end_of_the_connection_in_the_handshake_is_told_in_our_words(error: OSError, kernel: bool) -> None:
    handshake = tls.Handshake(Target("db1", tls=True), kernel)
    told = handshake.failure(error)
    assert (type(told), told.cause) == (
        MaybeNotInKernel if kernel else TlsFailed,
        "the server closed the connection in the TLS handshake",
    )
    assert not handshake.is_of_tls(error)
    assert handshake.words(error) == ""


@pytest.mark.row(8)
@pytest.mark.parametrize(("error", "words"), NOT_ENDED, ids=repr)
def test_what_the_server_said_before_it_left_is_no_mere_end(error: OSError, words: str) -> None:
    handshake = tls.Handshake(Target("db1", tls=True), False)
    assert words in handshake.failure(error).cause
    assert handshake.is_of_tls(error)


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
            "": (5, "the server asked for a certificate of ours, got none, and closed the connection"),
            "client": (5, f"the server closed the connection when it had our certificate {ours_is}"),
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
    assert error.cause.startswith("the server does not accept our certificate ")
    assert error.cause.endswith({"stranger": "(unknown ca)", "late": "(certificate expired)"}[which])


# -- versions and ciphers ----------------------------------------------------------------------------------------------

KERNEL_HINT = (
    "does it do TLS 1.2 with AES-GCM or ChaCha20-Poly1305? does it want a key (--tls-psk)? "
    "--tls-transport relay can do more"
)
NO_WAY = "the server found no way of TLS in common with us"


@pytest.mark.row(8)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
@pytest.mark.parametrize(
    ("kernel", "version", "ciphers", "cause", "hint"),
    [
        (
            True, V3, "", "the server does not do TLS 1.2, which kernel transport needs",
            "where it does 1.3 only: --tls-transport relay",
        ),
        (
            False, ssl.TLSVersion.TLSv1_1, "ALL", "the server does not do TLS 1.2 or later",
            "older ones are not safe: update the server",
        ),
        (
            True, ssl.TLSVersion.TLSv1_1, "ALL", NO_WAY, KERNEL_HINT,
        ),
        (True, V2, "ECDHE-ECDSA-AES128-SHA256", NO_WAY, KERNEL_HINT),
        (False, V2, "ADH-AES128-SHA256", NO_WAY, "does it do TLS 1.2 or later? does it want a key (--tls-psk)?"),
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
    with listening(after_yes(lambda sock: sock.recv(4096) and None)) as place:
        error = failure(trusting(pki, place), kernel)
    hint = KERNEL_HINT if kernel else "does it do TLS 1.2 or later? does it want a key (--tls-psk)?"
    assert told(error, pki) == (5, "the server closed the connection in the TLS handshake", hint)


NO_TLS = ("what the server sent is no TLS", "does something stand between us and it?")


@pytest.mark.row(8)
@pytest.mark.parametrize(
    ("junk", "told"),
    [
        (bytes(64), NO_TLS),
        (b"HTTP/1.1 400 Bad\r\n\r\n", NO_TLS),
        (EXPORT, NO_TLS),
        (b"\x15\x03\x03\x00\x02\x02\x50", ("the server ended TLS: internal error", "its log may tell why")),
        (b"\x15\x03\x03\x00\x02\x02\x5a", ("the server ended TLS: user cancelled", "its log may tell why")),
        (
            b"\x15\x03\x03\x00\x02\x02\x28",
            (NO_WAY, "does it do TLS 1.2 or later? does it want a key (--tls-psk)?"),
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


# -- words in the clear ------------------------------------------------------------------------------------------------

HELLO = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03" + bytes(112)  # the begin of a ServerHello
INJECTED = (
    5,
    "something was sent in the clear between the server's yes to TLS and its begin",
    "does somebody stand between us and the server?",
)


@pytest.mark.row(8)
@pytest.mark.parametrize("junk", [EXPORT, HELLO, b"\0", b"\x15\x03\x03\x00\x02\x02\x28", wire.ack(wire.STARTTLS)])
@pytest.mark.parametrize("unix", [False, True])
def test_word_that_comes_with_the_yes_is_never_taken_for_one_in_tls(
    pki: Path, tmp_path: Path, junk: bytes, unix: bool
) -> None:
    """The whole conversation after it would be right, so that taking it would be seen."""

    def serve(sock: socket.socket) -> None:
        sock.sendall(STARTTLS + junk)
        sock.recv(4096)
        heard.append(drain(sock))

    heard: list[bytes] = []
    with listening(serve, tmp_path / "s" if unix else None) as place:
        error = failure(trusting(pki, place, hostname="localhost"))
    assert told(error, pki) == INJECTED
    assert b"\x16\x03" not in b"".join(heard)


@pytest.mark.row(8)
def test_word_before_the_yes_is_an_error(pki: Path) -> None:
    with listening(says_and_hears(wire.greeting() + EXPORT + wire.ack(wire.STARTTLS), [])) as place:
        error = failure(trusting(pki, place))
    assert (error.exit_code, error.cause) == (4, "a reply to option 7, but we had sent NBD_OPT_STARTTLS")


@pytest.mark.row(8)
def test_word_after_our_first_one_breaks_tls(pki: Path) -> None:
    made = context(pki / "good")

    def serve(sock: socket.socket) -> None:
        sock.recv(4096, socket.MSG_PEEK)
        sock.sendall(EXPORT)
        made.wrap_socket(sock, server_side=True)

    with listening(after_yes(serve)) as place:
        error = failure(trusting(pki, place))
    assert (error.exit_code, error.cause, error.hint) == (5, *NO_TLS)


@pytest.mark.row(8)
def test_server_that_closes_with_its_yes_is_a_lost_connection(pki: Path) -> None:
    with listening(after_yes(lambda sock: sock.shutdown(socket.SHUT_WR))) as place:
        assert failure(trusting(pki, place)).exit_code in (3, 5)


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.row(8)
@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("stall", [after_yes(lambda sock: drain(sock) and None), after_yes(trickles)])
def test_server_that_stalls_in_tls_is_left_at_the_deadline(pki: Path, stall: Serve, kernel: bool) -> None:
    with listening(stall) as place:
        target = trusting(pki, place)
        left_waiting_for("TLS handshake", lambda seconds: client.connect(target, seconds, kernel_tls=kernel))


@pytest.mark.row(8)
def test_server_that_stalls_after_the_handshake_is_left_at_the_deadline(pki: Path) -> None:
    with listening(secure(context(pki / "good", clients=True), b"")) as place:
        error = failure(trusting(pki, place, **ours_from(pki, "client")), seconds=0.5)
    assert error.cause == "no answer within 0.5 s (NBD_OPT_GO, 12 bytes of data)"


@pytest.fixture
def as_if_in_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS as for the kernel, which this machine's may lack."""
    monkeypatch.setattr(tls.Handshake, "_see_it_in_kernel", lambda *_: None)


@pytest.mark.row(8)
def test_word_too_many_inside_tls_is_not_lost_on_the_way_to_the_kernel(pki: Path, as_if_in_kernel: None) -> None:
    """OpenSSL has it, and the kernel would take the next data for the answer to its first request."""
    with listening(secure(context(pki / "good"), EXPORT + b"x")) as place:
        error = failure(trusting(pki, place), kernel=True)
    assert (error.exit_code, error.cause) == (4, "the server sent more than it was asked for")


@pytest.mark.row(8)
@pytest.mark.parametrize("kernel", [False, True])
def test_without_a_handshake_there_is_no_tls_and_nothing_is_sent(kernel: bool) -> None:
    with pytest.raises(TlsFailed) as caught:
        client.connect(Target("127.0.0.1", 1, tls=True), raw_size=4096, kernel_tls=kernel)
    assert (caught.value.exit_code, caught.value.cause) == (5, "TLS begins in the handshake")


# -- the policy of the machine, and its kernel -------------------------------------------------------------------------


def strict(protocol: int) -> ssl.SSLContext:
    """As if openssl.cnf said so."""
    made = ssl.SSLContext(protocol)
    made.minimum_version = V3
    made.set_ciphers("DEFAULT@SECLEVEL=3")
    return made


@pytest.mark.row(8)
def test_policy_of_the_machine_is_kept(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "ssl", SimpleNamespace(**{**vars(ssl), "SSLContext": strict}))
    context = tls.Handshake(trusting(pki, Target("db1")), False)._context
    assert (context.minimum_version, context.security_level) == (V3, 3)
    with pytest.raises(NotInKernel) as caught:
        tls.Handshake(trusting(pki, Target("db1")), True)
    assert caught.value.cause == "the policy of this machine wants TLS 1.3, and kernel transport needs 1.2"


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
    monkeypatch.setattr(tls, "_CRYPTO", str(tmp_path / "crypto"))
    made = tls.Handshake(trusting(pki, Target("db1")), True)._context
    first = next(one["name"] for one in made.get_ciphers() if one["protocol"] == "TLSv1.2")
    assert ("CHACHA20" in first, "AES" in first) == (slow, not slow)
    monkeypatch.setattr(tls, "_CRYPTO", str(tmp_path / "none"))
    made = tls.Handshake(trusting(pki, Target("db1")), True)._context
    assert "AES" in next(one["name"] for one in made.get_ciphers() if one["protocol"] == "TLSv1.2")


# -- files -------------------------------------------------------------------------------------------------------------

SPELLED = "is the name spelled right, and may you?"
SCRAPS = {"empty": "", "text": "hello\n", "damaged": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}
FILES: dict[str, tuple[dict[str, str], str, str, str]] = {
    "missing": ({"ca": "none"}, "none", "cannot be read: No such file or directory", SPELLED),
    "no ca in directory": ({"ca": "other"}, "", "", ""),
    "empty directory": (
        {"ca": "empty-folder"}, "empty-folder/ca-cert.pem", "cannot be read: No such file or directory", SPELLED,
    ),
    "empty": ({"ca": "empty"}, "empty", "no certificate in PEM in it", "it has a line -----BEGIN CERTIFICATE-----"),
    "text": ({"ca": "text"}, "text", "no certificate in PEM in it", "it has a line -----BEGIN CERTIFICATE-----"),
    "a key": (
        {"ca": "good/server-key.pem"}, "good/server-key.pem", "no certificate in PEM in it",
        "it has a line -----BEGIN CERTIFICATE-----",
    ),
    "damaged": (
        {"ca": "damaged"}, "damaged", "damaged: OpenSSL cannot use it", "openssl x509 -in FILE -text shows what it can",
    ),
    "certificate missing": ({"cert": "none"}, "none", "cannot be read: No such file or directory", SPELLED),
    "certificate is a directory": ({"cert": "client"}, "client", "cannot be read: Is a directory", SPELLED),
    "no key with it": (
        {"cert": "client/client-cert.pem"}, "client/client-cert.pem", "no key in PEM in it",
        "it has a line -----BEGIN PRIVATE KEY-----",
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
        "the key has a password", "write it without one: openssl pkey -in FILE -out NEW",
    ),
    "damaged certificate": (
        {"cert": "damaged", "key": "client/client-key.pem"}, "damaged or PKI/client/client-key.pem",
        "damaged: OpenSSL cannot use it", "openssl x509 -in FILE -text shows what it can",
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
    monkeypatch.setattr(tls, "hasattr", lambda *_: False, raising=False)
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
    assert told(error, pki) == (5, NO_WAY, "does it use pre-shared keys at all, in TLS 1.2?")


# -- messages ----------------------------------------------------------------------------------------------------------


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
    handshake._see_message(None, direction, None, None, message, data)
    handshake._see_message(None, direction, None, None, 11, data)
    handshake.closed()


def test_certificate_is_taken_out_of_the_message_of_both_versions(pki: Path) -> None:
    der = ssl.PEM_cert_to_DER_cert((pki / "good" / "server-cert.pem").read_text())
    one = len(der).to_bytes(3, "big") + der
    for body in (len(one).to_bytes(3, "big") + one, b"\0" + (len(one) + 2).to_bytes(3, "big") + one + b"\0\0"):
        handshake = tls.Handshake(Target("db1", tls=True, tls_verify=False), False)
        handshake._see_message(None, "read", None, None, 11, b"\x0b" + len(body).to_bytes(3, "big") + body)
        assert handshake._certificate == der
