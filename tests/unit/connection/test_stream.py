# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams over sockets: deadlines that hold, and each failure of a connection. Over the loopback and socket pairs."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import wire
from loopback import eventually
from peer import (
    Serve,
    closed_port,
    deaf_port,
    drips,
    left_waiting_for,
    listening,
    says,
    says_and_hears,
    silence,
    soon,
)

from nbdattach.backends.limits import attachable
from nbdattach.connection import client, stream
from nbdattach.connection.stream import Stream, dial
from nbdattach.deadline import Deadline
from nbdattach.errors import ConnectionLost, DeadlinePassed, NbdattachError, NoConnection, TlsFailed
from nbdattach.host import tcp
from nbdattach.protocol.export import Export
from nbdattach.protocol.steps import Note, Receive, Send, Steps
from nbdattach.protocol.target import Target, parse_target

GO = wire.greeting() + wire.sized(wire.GO) + wire.ack(wire.GO)
INFO = wire.greeting() + wire.sized(wire.INFO) + wire.ack(wire.INFO)
LISTING = wire.greeting() + wire.listed(b"root", b"of all") + wire.ack(wire.LIST)
LISTING += wire.sized(wire.INFO) + wire.ack(wire.INFO)


def entered(target: Target) -> Export:
    connection = client.connect(target)
    connection.stream.close()
    return connection.export


ASKERS: dict[str, tuple[Callable[[Target], Any], bytes]] = {
    "connect": (entered, GO),
    "inspect": (client.inspect, INFO),
    "list": (client.list_exports, LISTING),
    "old style": (client.inspect, wire.oldstyle()),
    "new style": (client.inspect, wire.greeting(0) + wire.exported(zeroes=wire.ZEROES)),
}


def deaf_to(_: str) -> None:
    """A trace without a reader."""


# -- exact bytes -------------------------------------------------------------------------------------------------------


def three_and_two() -> Steps[bytes]:
    yield Note("counting")
    yield Send(b"?")
    first = yield Receive(3)
    nothing = yield Receive(0)
    return first + nothing + (yield Receive(2))


def test_not_a_byte_more_than_asked_for_is_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"abcdefgh")
        got = Stream(ours, Target("db1"), Deadline(5), deaf_to).run(three_and_two())
        assert (got, ours.recv(99), theirs.recv(99)) == (b"abcde", b"fgh", b"?")


def test_bytes_that_come_one_by_one_are_put_together() -> None:
    with listening(drips(b"abcde")) as target, dial(target, Deadline(5), deaf_to) as stream:
        assert stream.run(three_and_two()) == b"abcde"


@pytest.mark.parametrize(("ask", "said"), ASKERS.values(), ids=ASKERS)
def test_the_same_comes_out_whether_bytes_come_at_once_or_one_by_one(ask: Callable[[Target], Any], said: bytes) -> None:
    with listening(says_and_hears(said, [])) as target, listening(drips(said)) as slow:
        assert ask(target) == ask(slow)


def test_notes_are_traced() -> None:
    traced: list[str] = []
    with listening(says_and_hears(INFO, [])) as target:
        client.inspect(target, trace=traced.append)
    assert traced[:2] == [f"connecting to 127.0.0.1 port {target.port}", "waiting for the server's greeting"]
    assert traced[-1] == "NBD_OPT_ABORT, 0 bytes of data"


def test_goodbye_to_a_server_that_has_gone_is_no_failure(tmp_path: Path) -> None:
    """It has announced the export, and need not wait for NBD_OPT_ABORT."""

    def serve(sock: socket.socket) -> None:
        sock.sendall(wire.greeting() + wire.sized(wire.INFO))
        heard = b""
        while not heard.endswith(wire.asks(wire.INFO)):
            heard += sock.recv(4096)
        sock.shutdown(socket.SHUT_RD)
        sock.sendall(wire.ack(wire.INFO))

    traced: list[str] = []
    with listening(serve, tmp_path / "s") as target:
        assert client.inspect(target, 5, traced.append).export.size == wire.SIZE
    assert traced[-1] == "NBD_OPT_ABORT, 0 bytes of data"


class Unix:
    """As much of a Unix socket as `Stream` uses: it has no options of TCP."""

    family = socket.AF_UNIX

    def __init__(self, said: bytes) -> None:
        self.said = said
        self.timeouts: list[float] = []

    def recv(self, size: int) -> bytes:
        taken, self.said = self.said[:size], self.said[size:]
        return taken

    def sendall(self, data: bytes) -> None:
        """No server listens."""

    def gettimeout(self) -> float | None:
        return self.timeouts[-1] if self.timeouts else None

    def settimeout(self, seconds: float) -> None:
        self.timeouts.append(seconds)


def test_only_a_tcp_connection_is_acknowledged_at_once() -> None:
    """For TCP `script.drip` holds it, in every conversation."""
    stream = Stream(cast(socket.socket, Unix(b"abcde")), Target(socket="/s"), Deadline(5), deaf_to)
    assert stream.run(three_and_two()) == b"abcde"


def test_the_timeout_is_set_once_while_hardly_any_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    sock, left = Unix(b"abcde" * 2), iter([5, 4.99, 4.98, 4.96, 4.94, 4.93])
    deadline = Deadline(5)
    monkeypatch.setattr(deadline, "remaining", lambda: next(left))
    stream = Stream(cast(socket.socket, sock), Target(socket="/s"), deadline, deaf_to)
    for _ in range(2):
        assert stream.run(three_and_two()) == b"abcde"
    assert sock.timeouts == [5, 4.94]


# -- the deadline ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [client.connect, client.inspect, client.list_exports])
def test_silent_server_is_left_at_the_deadline(ask: Callable[..., Any]) -> None:
    with listening(silence) as target:
        told = left_waiting_for("waiting for the server's greeting", lambda seconds: ask(target, seconds))
    assert told.startswith(f"{target.uri}: no answer within ")


def test_a_server_that_accepts_and_says_nothing_is_said_to_be_full_perhaps() -> None:
    """qemu-nbd serves one client (--shared=1), and its kernel accepts the next; a device of ours may be the first."""
    with listening(silence) as target, pytest.raises(DeadlinePassed) as caught:
        client.inspect(target, 0.3)
    assert caught.value.cause == "no answer within 0.3 s (waiting for the server's greeting): the server may be full"
    assert caught.value.hint == (
        "qemu-nbd serves more clients with -e N; a device attached to it here counts as one; "
        "--connect-timeout TIME sets how long to wait"
    )


def test_a_server_that_has_begun_to_speak_is_not_said_to_be_full() -> None:
    with listening(says_and_hears(wire.greeting(), [])) as target, pytest.raises(DeadlinePassed) as caught:
        client.inspect(target, 0.3)
    assert "full" not in str(caught.value) + caught.value.hint


def test_deadline_tells_the_step_that_was_waited_for() -> None:
    with listening(says_and_hears(wire.greeting(), [])) as target:
        left_waiting_for("NBD_OPT_INFO, 12 bytes of data", lambda seconds: client.inspect(target, seconds))


TRICKLES = {
    "connect": (client.connect, wire.info(wire.GO, 9, bytes(60000))),
    "inspect": (client.inspect, wire.info(wire.INFO, 9, bytes(60000))),
    "list": (client.list_exports, wire.listed(bytes(4096))),
}


@pytest.mark.parametrize(("ask", "said"), TRICKLES.values(), ids=TRICKLES)
def test_server_that_trickles_for_ever_is_left_at_the_deadline(ask: Callable[..., Any], said: bytes) -> None:
    """Each byte comes in good time, the whole never does."""
    with listening(drips(wire.greeting() + said)) as target, soon(0.5), pytest.raises(DeadlinePassed):
        ask(target, 0.5)


def test_deadline_holds_for_sending_too() -> None:
    def endless() -> Steps[None]:
        while True:
            yield Send(bytes(1 << 20))

    ours, theirs = socket.socketpair()
    with ours, theirs, soon(0.2), pytest.raises(DeadlinePassed):
        Stream(ours, Target("db1"), Deadline(0.2), deaf_to).run(endless())


def test_passed_deadline_is_noticed_before_waiting() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, soon(), pytest.raises(DeadlinePassed):
        Stream(ours, Target("db1"), Deadline(0), deaf_to).run(three_and_two())


def test_connect_that_nobody_answers_is_left_at_the_deadline() -> None:
    with deaf_port() as port:
        told = left_waiting_for("connecting", lambda seconds: client.inspect(Target("127.0.0.1", port), seconds))
    assert told.startswith(f"nbd://127.0.0.1:{port}: no answer within ")


def test_resolver_that_hangs_does_not_outlast_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_: object, flags: int = 0, **__: object) -> None:
        if not flags:
            release.wait(60)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(stream, "_known", {})
    told = left_waiting_for("looking up db1", lambda seconds: client.inspect(Target("db1"), seconds))
    release.set()
    assert told.startswith("nbd://db1: no answer within ")


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    monkeypatch.setattr(stream, "_known", {})
    monkeypatch.setattr(stream, "_asked", {})
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    return made


class Resolver:
    """Finds every name at 127.0.0.1, until it fails or hangs; numeric addresses it knows always."""

    def __init__(self) -> None:
        self.asked = 0
        self.fails = False
        self.hangs = threading.Event()
        self.hangs.set()

    def __call__(self, host: bytes, port: int, *, type: int = 0, flags: int = 0) -> Any:
        numeric = host == b"127.0.0.1"
        if not numeric and not flags:
            self.asked += 1
            self.hangs.wait(60)
        if not numeric and (flags or self.fails):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, type, 6, "", ("127.0.0.1", port))]


def test_name_that_was_found_once_needs_no_resolver_that_works(resolver: Resolver) -> None:
    with listening(says_and_hears(INFO, [])) as target, soon():
        named = Target("db1", target.port)
        stream.prepare(named, Deadline(5))
        resolver.fails = True
        assert client.inspect(named).export.size == wire.SIZE


def test_resolver_that_hangs_is_waited_for_once(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hang because its files are on the disk of the server that it has to find."""
    with listening(says_and_hears(INFO, [])) as target:
        named = Target("db1", target.port)
        stream.prepare(named, Deadline(5))
        resolver.hangs.clear()
        with soon(1.0):
            client.inspect(named)
        monkeypatch.setattr(stream, "_LOOKUP_PATIENCE", 60.0)
        with soon():
            client.inspect(named)
            client.inspect(named)
        resolver.hangs.set()
    assert resolver.asked == 2


def test_who_waits_for_the_lookup_of_another_is_told_of_its_own_target(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver.fails = True
    resolver.hangs.clear()
    causes: list[str] = []
    both_wait, outcome = threading.Barrier(3), stream._Question.outcome

    def wait(question: Any, seconds: float) -> Any:
        both_wait.wait(60)
        return outcome(question, seconds)

    monkeypatch.setattr(stream._Question, "outcome", wait)

    def ask(export: str) -> None:
        with pytest.raises(NoConnection) as caught:
            client.inspect(Target("db1", export=export))
        causes.append(str(caught.value))

    threads = [threading.Thread(target=ask, args=[export]) for export in ("a", "b")]
    for thread in threads:
        thread.start()
    both_wait.wait(60)
    resolver.hangs.set()
    for thread in threads:
        thread.join(60)
    assert resolver.asked == 1
    words = "cannot find the host db1: Temporary failure in name resolution"
    assert sorted(causes) == [f"nbd://db1/a: {words}", f"nbd://db1/b: {words}"]


def test_remembered_address_serves_where_the_name_was_never_found(resolver: Resolver) -> None:
    resolver.fails = True
    with listening(says_and_hears(INFO, [])) as target:
        named = Target("db1", target.port)
        stream.remember(named, "127.0.0.1")
        assert client.inspect(named).export.size == wire.SIZE


def test_the_name_counts_more_than_a_remembered_address(resolver: Resolver) -> None:
    with listening(says_and_hears(INFO, [])) as target:
        named = Target("db1", target.port)
        stream.remember(named, "192.0.2.1")
        assert client.inspect(named).export.size == wire.SIZE


def test_address_at_the_other_end(tmp_path: Path) -> None:
    with listening(says_and_hears(GO, [])) as target, dial(target, Deadline(5), deaf_to) as there:
        assert stream.address_of(there.sock) == "127.0.0.1"
    with listening(says_and_hears(GO, []), tmp_path / "s") as target, dial(target, Deadline(5), deaf_to) as there:
        assert stream.address_of(there.sock) is None


def test_preparation_tells_which_host_cannot_be_found(resolver: Resolver) -> None:
    resolver.fails = True
    with pytest.raises(NoConnection, match="cannot find the host"):
        stream.prepare(Target("db1"), Deadline(5))


# -- no connection -----------------------------------------------------------------------------------------------------


def test_closed_port_says_so() -> None:
    port = closed_port()
    with pytest.raises(NoConnection) as caught:
        client.inspect(Target("127.0.0.1", port))
    assert str(caught.value) == f"nbd://127.0.0.1:{port}: cannot connect: Connection refused"
    assert caught.value.hint == f"is the server running, and does it listen on port {port}?"


def test_missing_socket_says_so(tmp_path: Path) -> None:
    target = Target(socket=f"{tmp_path}/none", export="disk")
    with pytest.raises(NoConnection) as caught:
        client.inspect(target)
    assert str(caught.value) == f"{target.uri}: cannot connect: No such file or directory"
    assert caught.value.hint == f"is the server running, and do you have permission to open {tmp_path}/none?"


def test_file_that_is_no_socket_is_no_connection(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NoConnection, match="cannot connect: Connection refused"):
        client.inspect(Target(socket=f"{tmp_path}/file"))


def test_abstract_socket_that_is_not_there_is_no_connection() -> None:
    with pytest.raises(NoConnection) as caught:
        client.inspect(Target(socket="\0nbdattach\n"))
    assert caught.value.hint == r"is the server running, and do you have permission to open \x00nbdattach\n?"


def test_unix_socket_is_served(tmp_path: Path) -> None:
    with listening(says_and_hears(INFO, []), tmp_path / "s") as target:
        assert client.inspect(target).export.size == wire.SIZE


@pytest.mark.parametrize("host", ["nbdattach.invalid", "a..b", "x" * 64, "x" * 300])
def test_host_without_an_address_is_no_connection(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def offline(host: bytes, *args: Any, **kwargs: Any) -> Any:
        if host == b"nbdattach.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    with pytest.raises(NoConnection, match="cannot find the host") as caught:
        client.inspect(parse_target(host), 60)
    assert caught.value.hint == "is the name correct?"


def test_device_in_the_place_of_a_server_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    with pytest.raises(NoConnection) as caught:
        client.inspect(parse_target("nbd0"), 60)
    assert caught.value.hint == "a TARGET is a server; nbdattach status nbd0 shows the device"


Found = list[tuple[int, int, int, str, tuple[str, int]]]


def resolving(monkeypatch: pytest.MonkeyPatch, *places: tuple[int, int]) -> None:
    """db1 has addresses of these families, all at 127.0.0.1 and these ports."""
    found: Found = [(family, 1, 6, "", ("127.0.0.1", port)) for family, port in places]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def test_second_address_is_tried_when_the_first_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(says_and_hears(INFO, [])) as target:
        resolving(monkeypatch, (socket.AF_INET, closed_port()), (socket.AF_INET, target.port))
        assert client.inspect(Target("db1")).export.size == wire.SIZE


def test_dead_first_address_does_not_eat_all_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(says_and_hears(INFO, [])) as target, deaf_port() as deaf:
        resolving(monkeypatch, (socket.AF_INET, deaf), (socket.AF_INET, target.port))
        assert client.inspect(Target("db1"), 2).export.size == wire.SIZE


def test_address_of_a_family_the_kernel_lacks_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Like ::1 if IPv6 is off."""
    with listening(says_and_hears(INFO, [])) as target:
        resolving(monkeypatch, (socket.AF_ASH, 1), (socket.AF_INET, target.port))
        assert client.inspect(Target("db1")).export.size == wire.SIZE


def test_when_all_addresses_fail_the_first_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with deaf_port() as deaf:
        resolving(monkeypatch, (socket.AF_INET, closed_port()), (socket.AF_INET, deaf))
        with pytest.raises(NoConnection, match="nbd://db1: cannot connect: Connection refused"):
            client.inspect(Target("db1"), 1)


# -- a server that dies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ask", "said"), ASKERS.values(), ids=ASKERS)
def test_server_that_dies_at_any_byte_gives_an_error_of_ours(ask: Callable[[Target], Any], said: bytes) -> None:
    ends = iter(range(len(said)))
    with listening(lambda sock: sock.sendall(said[: next(ends)])) as target:
        for _ in range(len(said)):
            with pytest.raises(NbdattachError) as caught:
                ask(target)
            assert caught.value.exit_code in (3, 4)
            assert str(caught.value).isprintable()


def test_server_that_resets_the_connection_says_so() -> None:
    def reset(sock: socket.socket) -> None:
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with (
        listening(reset) as target,
        dial(target, Deadline(5), deaf_to) as stream,
        pytest.raises(ConnectionLost) as caught,
    ):
        stream.run(three_and_two())
    cause = "the server closed the connection (counting: Connection reset by peer)"
    assert str(caught.value) == f"{target.uri}: {cause}"


CHECKED = GO + wire.simple_reply(0, client.CHECK_COOKIE) + bytes(4096)
LEFT = {
    "closed": says(b""),
    "no NBD server": says(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "greeting": says(wire.greeting()),
    "closed after all": says(GO),
    "all is well": says_and_hears(CHECKED, []),
}


def checked(target: Target) -> object:
    return client.check(target, attachable)


@pytest.mark.parametrize("serve", LEFT.values(), ids=LEFT)
def test_no_socket_is_left_open(serve: Serve) -> None:
    gc.collect()
    with listening(serve) as target, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for ask in (entered, client.inspect, client.list_exports, checked):
            with contextlib.suppress(NbdattachError):
                ask(target)
        gc.collect()
    assert [str(one.message) for one in caught] == []


# -- TLS, as far as it goes without a certificate; test_tls.py and its neighbours have the rest -----------------------

STARTTLS = wire.greeting() + wire.ack(wire.STARTTLS)


def test_server_that_is_silent_in_tls_is_left_at_the_deadline() -> None:
    with listening(says_and_hears(STARTTLS, [])) as target:
        secure = replace(target, tls=True)
        left_waiting_for("TLS handshake", lambda seconds: client.inspect(secure, seconds))


def test_server_that_closes_in_tls_is_an_error_of_ours() -> None:
    with listening(says(STARTTLS)) as target, pytest.raises((TlsFailed, NoConnection)):
        client.inspect(Target(target.host, target.port, tls=True), 60)


@pytest.mark.parametrize("name", ["\udcff", "a..b", "x" * 300, ".a", "[::1]"])
def test_impossible_name_to_verify_is_tls_failed(name: str) -> None:
    with listening(says_and_hears(STARTTLS, [])) as target, pytest.raises((TlsFailed, DeadlinePassed)):
        client.inspect(Target(target.host, target.port, tls=True, tls_hostname=name), 0.2)


def test_tls_over_a_socket_without_a_name_to_verify_is_tls_failed(tmp_path: Path) -> None:
    with listening(says_and_hears(STARTTLS, []), tmp_path / "s") as target, pytest.raises(TlsFailed):
        client.inspect(Target(socket=target.socket, tls=True), 60)


def test_connection_in_the_clear_has_no_tls() -> None:
    with listening(says_and_hears(INFO, [])) as target:
        assert client.inspect(target).tls is None


# -- a connection with itself ------------------------------------------------------------------------------------------


class Unlucky(socket.socket):
    """The kernel picks the port that it connects to, as it may do for any port of net.ipv4.ip_local_port_range."""

    def connect(self, place: Any) -> None:
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.bind(place)
        super().connect(place)


def test_a_server_that_resets_at_once_is_not_taken_for_ourselves() -> None:
    """The socket has no peer then, and the kernel says so."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        stream.reset(server.accept()[0])
        eventually(lambda: tcp.ends(ours.fileno()) > 0)
        with pytest.raises(OSError, match="not connected"):
            ours.getpeername()
        assert not stream.is_to_itself(ours)


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_socket_that_is_connected_to_itself_is_no_server(
    host: str, family: socket.AddressFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server((host, 0), family=family) as server:
        place = Target(host, server.getsockname()[1])
    monkeypatch.setattr(stream.socket, "socket", Unlucky)
    with pytest.raises(NoConnection) as caught:
        client.inspect(place, 60)
    assert caught.value.cause == "cannot connect: no server listens, and the kernel connected our socket to itself"
    hint = f"start the server; sysctl net.ipv4.ip_local_reserved_ports={place.port} keeps its port free for it"
    assert caught.value.hint == hint
    monkeypatch.undo()
    with socket.socket(family) as server:  # without SO_REUSEADDR
        server.bind((host, place.port))


def test_an_address_of_this_host_is_known_as_such() -> None:
    assert [stream.is_here(one) for one in ("127.0.0.1", "192.0.2.1", "2001:db8::1", "localhost", "", "db1")] == [
        True,
        *[False] * 5,
    ]
