# SPDX-License-Identifier: GPL-2.0-or-later
"""The handshake: names, servers that stall, and words that come before TLS begins or after it."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
import wire
from peer import Serve, drain, left_waiting_for, listening, says_and_hears
from tlsclient import NO_TLS, NOT_VERIFIED, OTHER_NAME, failure, ours_from, told, trusting
from tlspeer import EXPORT, STARTTLS, after_yes, context, secure, trickles

from nbdattach.connection import client, tls
from nbdattach.errors import TlsFailed
from nbdattach.protocol.target import Target

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
    cause = "a Unix socket has no host name to check the certificate against"
    assert told(none, pki) == (5, cause, "--tls-hostname NAME sets the name")


@pytest.mark.row(8)
@pytest.mark.parametrize("name", ["a..b", ".a", "x" * 300])
def test_impossible_name_is_told(pki: Path, name: str) -> None:
    with listening(secure(context(pki / "good"))) as place:
        error = failure(trusting(pki, place, hostname=name))
    shown = name if len(name) < 200 else name[:200] + "..."
    cause = f"'{shown}' cannot be a name in a certificate"
    assert told(error, pki) == (5, cause, "--tls-hostname NAME sets the right one")


# -- words in the clear ------------------------------------------------------------------------------------------------

HELLO = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03" + bytes(112)  # the begin of a ServerHello
INJECTED = (
    5,
    "unencrypted data arrived after the server agreed to start TLS",
    "possible man in the middle: check the network path",
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
@pytest.mark.parametrize("stall", [after_yes(drain), after_yes(trickles)])
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
    monkeypatch.setattr(tls.Handshake, "_require_it_in_kernel", lambda *_: None)


@pytest.mark.row(8)
def test_word_too_many_inside_tls_is_not_lost_on_the_way_to_the_kernel(pki: Path, as_if_in_kernel: None) -> None:
    """OpenSSL has it, and the kernel would take what comes next for the answer to its first request."""
    with listening(secure(context(pki / "good"), EXPORT + b"x")) as place:
        error = failure(trusting(pki, place), kernel=True)
    assert (error.exit_code, error.cause) == (4, "the server sent more data than requested")


@pytest.mark.row(8)
@pytest.mark.parametrize("kernel", [False, True])
def test_without_a_handshake_there_is_no_tls_and_nothing_is_sent(kernel: bool) -> None:
    with pytest.raises(TlsFailed) as caught:
        client.connect(Target("127.0.0.1", 1, tls=True), raw_size=4096, kernel_tls=kernel)
    assert (caught.value.exit_code, caught.value.cause) == (5, "TLS needs the handshake")
