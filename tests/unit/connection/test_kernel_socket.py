# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections in the kernel's hands, over the loopback: how to see that they live, and how they are ended for good."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import (
    PATIENCE,
    Opened,
    Transport,
    cut_off,
    each_kind,
    eventually,
    fill,
    tcp,
    unix,
)

from nbdattach.connection import kernel_socket
from nbdattach.connection.kernel_socket import Link, Scout, watch_peer
from nbdattach.deadline import Deadline


def waiting(sock: socket.socket) -> int:
    """Bytes that have come and not been read."""
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0])


def told(sock: socket.socket) -> tuple[bytes, type[OSError] | None]:
    """All that comes until the end, and the error that was the end."""
    heard = b""
    try:
        while more := sock.recv(1 << 16):
            heard += more
    except OSError as error:
        return heard, type(error)
    return heard, None


# -- over --------------------------------------------------------------------------------------------------------------


@each_kind
def test_an_open_connection_is_not_over(pair: Opened) -> None:
    with pair() as (ours, kernels, theirs):
        theirs.sendall(b"reply")
        kernels.sendall(b"request")
        assert not ours.over


@each_kind
def test_a_link_that_is_cut_is_over_at_both_ends_whoever_holds_a_duplicate(pair: Opened) -> None:
    with pair() as (ours, kernels, theirs):
        ours.cut()
        assert ours.over
        assert (theirs.recv(9), kernels.recv(9)) == (b"", b"")
        ours.cut()  # once more does no harm


@each_kind
def test_what_the_driver_has_shut_down_is_over(pair: Opened) -> None:
    with pair() as (ours, kernels, _):
        kernels.shutdown(socket.SHUT_RDWR)
        assert ours.over


@each_kind
def test_what_the_peer_has_ended_is_over_when_the_driver_has_ended_it_too(pair: Opened) -> None:
    with pair() as (ours, kernels, theirs):
        theirs.close()
        assert kernels.recv(9) == b""
        kernels.shutdown(socket.SHUT_RDWR)
        eventually(lambda: ours.over)


def test_what_we_have_closed_is_over() -> None:
    """The monitor may ask while a thread of its own buries it."""
    ours, theirs = socket.socketpair()
    with theirs:
        made = Link(ours)
        made.close()
        assert made.over


def test_a_connection_is_cut_though_there_is_no_free_descriptor() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with tcp() as (made, _, theirs):
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            made.cut()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert theirs.recv(1) == b""


def test_a_reset_connection_is_over() -> None:
    with tcp() as (ours, _, theirs):
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        eventually(lambda: ours.over)


# -- burying -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def before_the_deadline(least: float = 0.0) -> Iterator[None]:
    """PATIENCE is long, so that a busy machine is not taken for one that waits."""
    began = time.monotonic()
    yield
    assert least <= time.monotonic() - began < PATIENCE / 2


def test_nothing_comes_late_from_a_buried_connection() -> None:
    """The peer reads nothing until then, so much of it is still on our side."""
    with tcp() as (ours, kernels, theirs):
        sent = fill(kernels)
        ours.bury(Deadline(PATIENCE))
        came = waiting(theirs)
        heard, _ = told(theirs)
        assert len(heard) == came < sent


def test_the_farewell_of_a_buried_connection_is_short_when_its_data_cannot_go() -> None:
    with tcp() as (ours, kernels, _):
        fill(kernels)
        with before_the_deadline():
            ours.bury(Deadline(PATIENCE))


def test_a_peer_that_ends_its_side_is_left_without_a_reset_and_not_waited_for_longer() -> None:
    with tcp() as (ours, kernels, theirs):
        kernels.sendall(b"request")
        theirs.shutdown(socket.SHUT_WR)
        with before_the_deadline():
            ours.bury(Deadline(PATIENCE))
        assert told(theirs) == (b"request", None)


def test_a_peer_that_does_not_end_its_side_is_reset_at_the_deadline() -> None:
    with tcp() as (ours, _, theirs):
        with before_the_deadline(least=0.05):  # on a busy machine the FIN itself may be late, which gets no longer
            ours.bury(Deadline(0.1))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            theirs.sendall(b"late reply")


def test_a_unix_socket_is_buried_when_the_peer_has_taken_what_was_sent() -> None:
    with unix() as (ours, kernels, theirs):
        kernels.sendall(b"request")
        with before_the_deadline(least=0.2):
            ours.bury(Deadline(0.2))
        assert told(theirs) == (b"request", None)


@each_kind
def test_what_is_buried_is_over_and_stays_open(pair: Opened) -> None:
    """The driver may still read it."""
    with pair() as (ours, _, theirs):
        theirs.close()
        ours.bury(Deadline(0.1))
        assert ours.over
        assert ours._sock.fileno() >= 0


# -- silence -----------------------------------------------------------------------------------------------------------


def test_a_peer_behind_a_cut_link_is_silent_and_a_slow_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_socket, "SILENT", 0.3)  # two retransmissions take 0.6
    with tcp() as (dead, kernels, theirs), tcp() as (slow, kernels_of_slow, _):
        cut_off(theirs)
        assert not dead.silent
        kernels.sendall(b"request")
        kernels_of_slow.sendall(b"request")
        eventually(lambda: dead.silent)
        assert not slow.silent
        dead.cut()
        dead.bury(Deadline(0))  # its end is not acknowledged either


def test_a_peer_that_does_not_read_for_long_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers each question about its closed window: a server that is at one slow write reads nothing meanwhile."""
    monkeypatch.setattr(kernel_socket, "SILENT", 0.3)
    watched = []
    with tcp() as (ours, kernels, _theirs):
        fill(kernels)
        for _ in range(60):
            watched.append(ours.silent)
            time.sleep(0.05)
    assert watched == [False] * len(watched)


def test_a_peer_that_does_not_read_and_is_cut_off_then_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_socket, "SILENT", 0.3)
    with tcp() as (ours, kernels, theirs):
        fill(kernels)
        cut_off(theirs)
        eventually(lambda: ours.silent)


@each_kind
def test_an_idle_peer_is_not_silent(pair: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_socket, "SILENT", 0.001)
    with pair() as (ours, _, _theirs):
        time.sleep(0.05)
        assert not ours.silent


def test_what_is_over_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_socket, "SILENT", 0.001)
    with tcp() as (ours, kernels, theirs):
        cut_off(theirs)
        kernels.sendall(b"request")
        eventually(lambda: ours.silent)
        ours.cut()
        assert not ours.silent


def test_round_trip_is_measured_on_tcp_only() -> None:
    with tcp() as (ours, _, _theirs):
        assert ours.round_trip is not None
        assert 0 < ours.round_trip < 10
    with unix() as (ours, _, _theirs):
        assert ours.round_trip is None


@each_kind
@pytest.mark.parametrize("limit", [struct.pack("ll", 86_400, 0), struct.pack("ll", 1, 0), struct.pack("ll", 0, 20_000)])
def test_the_limit_that_the_driver_sets_on_sending_is_seen_and_can_be_taken_off(pair: Opened, limit: bytes) -> None:
    """It is how we see that the driver took the socket; left there, it would end a slow connection."""
    with pair() as (ours, kernels, _):
        assert not ours.limited
        kernels.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        assert ours.limited
        ours.unlimited()
        assert not ours.limited
        assert kernels.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16) == bytes(16)


# -- --dead-peer -------------------------------------------------------------------------------------------------------

OPTIONS = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)


@pytest.mark.parametrize(
    ("seconds", "idle", "interval"), [(1, 1, 1), (1.5, 1, 1), (6, 3, 1), (30, 15, 5), (3600, 1800, 600)]
)
def test_an_idle_tcp_peer_that_answers_nothing_is_gone_after_so_long(seconds: float, idle: int, interval: int) -> None:
    with socket.socket() as sock:
        watch_peer(sock, seconds)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        found = [sock.getsockopt(socket.IPPROTO_TCP, option) for option in OPTIONS]
    assert found == [idle, interval, 3]


def test_tcp_does_not_end_a_connection_by_itself_because_its_peer_does_not_read() -> None:
    with socket.socket() as sock:
        watch_peer(sock, 30)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


@pytest.mark.parametrize(("resent_after", "milliseconds"), [(0, 0), (1, 750), (60, 58_000), (1e9, 2**31 - 1)])
def test_tcp_ends_a_connection_before_the_driver_sends_over_another_one_what_it_had(
    resent_after: float, milliseconds: int
) -> None:
    with socket.socket() as sock:
        kernel_socket.get_ready(sock.fileno(), ROOM, resent_after)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == milliseconds


@pytest.mark.parametrize("seconds", [65_536, 24 * 3600, 365 * 24 * 3600])
def test_any_time_that_the_command_line_takes_can_be_set(seconds: float) -> None:
    with socket.socket() as sock:
        watch_peer(sock, seconds)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_a_unix_socket_needs_none_of_it(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        watch_peer(sock, 30)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


# -- the scout ---------------------------------------------------------------------------------------------------------


def test_a_scout_that_is_dropped_was_not_taken() -> None:
    with Scout() as scout:
        os.close(os.dup(scout.fileno()))  # the driver looks at it, and gives it back
        assert not scout.was_taken()


def test_a_scout_was_not_taken_if_a_process_that_starts_meanwhile_has_it_for_a_moment() -> None:
    """A process has all our descriptors until it runs its program, or closes them itself."""
    with Scout() as scout:
        started = os.fork()
        if not started:
            time.sleep(0.1)
            os._exit(0)
        assert not scout.was_taken()
        os.waitpid(started, 0)


@pytest.mark.parametrize("ended", [False, True])
def test_a_scout_that_is_kept_was_taken(ended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_socket, "_BURIAL", 0.1)
    with Scout() as scout, socket.socket(fileno=os.dup(scout.fileno())) as kept:
        if ended:
            kept.shutdown(socket.SHUT_RDWR)  # the driver has tried to use it meanwhile
        assert scout.was_taken()


class Driver:
    """Treats a scout as nbd.c does: a reference of its own, and a thread that reads replies (recv_work)."""

    def __init__(self, number: int, slow: float = 0.0) -> None:
        self._sock = socket.socket(fileno=os.dup(number))
        self._slow = slow
        self._awake = threading.Event()
        self.marked_dead = False
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        self._awake.wait(self._slow)
        while self._sock.recv(16):
            pass
        self.marked_dead = True
        self._sock.shutdown(socket.SHUT_RDWR)

    def replace(self) -> None:
        """By another connection; the old one is given back."""
        self._awake.set()
        self._thread.join(PATIENCE)
        self._sock.close()


@pytest.mark.parametrize("slow", [0.0, 0.05, 0.3])
def test_the_driver_counts_a_scout_as_dead_before_anything_comes_in_its_place(
    slow: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_socket, "_BURIAL", PATIENCE)
    monkeypatch.setattr(
        kernel_socket, "_SCOUT_ENDS", 0.3
    )  # a thread of Python is slower than a work item of the kernel
    with Scout() as scout:
        driver = Driver(scout.fileno(), slow)
        assert scout.was_taken()
        assert driver.marked_dead
    driver.replace()


def test_a_scout_does_not_wait_for_a_driver_that_does_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_socket, "_BURIAL", 0.2)
    with Scout() as scout:
        driver = Driver(scout.fileno(), slow=PATIENCE)
        with before_the_deadline():
            assert scout.was_taken()
    driver.replace()


def test_scouts_leave_no_descriptor_behind() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for taken in (False, True):
        with Scout() as scout:
            driver = Driver(scout.fileno()) if taken else None
            assert scout.was_taken() is taken
        if driver:
            driver.replace()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_nothing_can_be_sent_over_a_scout() -> None:
    with Scout() as scout, socket.socket(fileno=os.dup(scout.fileno())) as kept, pytest.raises(BrokenPipeError):
        kept.sendall(b"request")


def test_who_keeps_a_scout_sees_its_end_once_it_is_asked() -> None:
    with socket.socket(fileno=os.dup((scout := Scout()).fileno())) as kept:
        kept.settimeout(PATIENCE)
        assert kept.recv(1) == b"?"
        scout.was_taken()
        scout.close()
        assert kept.recv(1) == b""


# -- room for all that is sent -----------------------------------------------------------------------------------------

ROOM = 128 << 20


class WithoutCapability(socket.socket):
    """As the kernel has it for a process without CAP_NET_ADMIN."""

    def setsockopt(self, level: int, option: int, *value: object) -> None:
        if option == 32:  # SO_SNDBUFFORCE
            raise PermissionError(errno.EPERM, "Operation not permitted")
        super().setsockopt(level, option, *value)  # type: ignore[call-overload]


def full(ours: socket.socket) -> None:
    """Until TCP has something left that it cannot send."""
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(1 << 16))


def test_what_a_connection_that_has_ended_has_not_delivered_is_dropped() -> None:
    with tcp() as (made, ours, theirs):
        full(ours)
        ours.shutdown(socket.SHUT_RDWR)
        made.drop_undelivered()
        with pytest.raises(ConnectionResetError):
            while theirs.recv(1 << 20):
                pass


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_that_is_so_whichever_end_was_closed_first(first: str) -> None:
    """CLOSING or LAST_ACK: our end has data left, and the other end has announced that it sends no more."""
    with tcp() as (made, ours, theirs):
        full(ours)
        for end in (ours, theirs) if first == "ours" else (theirs, ours):
            end.shutdown(socket.SHUT_WR)
        eventually(lambda: made.over)
        made.drop_undelivered()
        with pytest.raises(ConnectionResetError):
            while theirs.recv(1 << 20):
                pass


def test_where_it_cannot_be_reset_tcp_sends_nothing_of_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS in the kernel."""
    monkeypatch.setattr(Link, "_reset", lambda _: False)
    with tcp() as (made, ours, _):
        full(ours)
        ours.shutdown(socket.SHUT_RDWR)
        made.drop_undelivered()
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1


def test_what_was_delivered_may_be_read_to_its_end() -> None:
    with tcp() as (made, ours, theirs):
        ours.send(b"all")
        ours.shutdown(socket.SHUT_RDWR)
        eventually(lambda: kernel_socket.tcp.Info(ours).state != kernel_socket.tcp.FIN_WAIT1)
        made.drop_undelivered()
        assert (theirs.recv(16), theirs.recv(16)) == (b"all", b"")


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
@pytest.mark.parametrize("transport", [unix, tcp])
def test_a_send_of_all_that_can_be_in_flight_waits_for_no_server(transport: Transport) -> None:
    """The server reads nothing."""
    with transport() as (made, ours, _):
        assert not kernel_socket.has_room(ours.fileno(), ROOM)
        made.get_ready(ROOM, 0)
        assert kernel_socket.has_room(ours.fileno(), ROOM)
        ours.setblocking(False)
        piece, sent = bytes(1 << 20), 0
        for _ in range(ROOM >> 20):
            sent += ours.send(piece)
        assert sent == ROOM


def test_without_the_capability_there_is_as_much_room_as_every_user_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_socket.socket, "socket", WithoutCapability)
    with unix() as (made, ours, _):
        made.get_ready(ROOM, 0)
        allowed = int(Path("/proc/sys/net/core/wmem_max").read_text())
        assert kernel_socket.has_room(ours.fileno(), min(allowed, ROOM))
        assert kernel_socket.has_room(ours.fileno(), ROOM) == (allowed >= ROOM)
    assert kernel_socket.can_make_room() == (allowed >= 1 << 30)
