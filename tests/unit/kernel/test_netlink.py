# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages to the kernel, byte by byte as include/uapi/linux/nbd-netlink.h has them; and its announcements."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

import pytest

from nbdattach.kernel import netlink

FAMILY, GROUP = 42, 7  # numbers that the kernel gave them
CONNECT, DISCONNECT, RECONFIGURE, LINK_DEAD = 1, 2, 3, 4
INDEX, SIZE, BLOCK_SIZE, TIMEOUT, SERVER_FLAGS, CLIENT_FLAGS, SOCKETS, DEAD_CONN, _, BACKEND = range(1, 11)


def attribute(number: int, data: bytes) -> bytes:
    """struct nlattr: its length without padding, its number, the data padded to four bytes."""
    return struct.pack("=HH", 4 + len(data), number) + data + bytes(-len(data) % 4)


def u32(number: int, value: int) -> bytes:
    return attribute(number, struct.pack("=I", value))


def u64(number: int, value: int) -> bytes:
    return attribute(number, struct.pack("=Q", value))


def sockets(*numbers: int) -> bytes:
    """NBD_ATTR_SOCKETS holds NBD_SOCK_ITEM (1), each of which holds NBD_SOCK_FD (1)."""
    return attribute(SOCKETS, b"".join(attribute(1, u32(1, number)) for number in numbers))


REQUEST = 1 | 4  # NLM_F_REQUEST, NLM_F_ACK


def message(kind: int, command: int, attributes: bytes, flags: int = 0, number: int = 0) -> bytes:
    """struct nlmsghdr without a port, struct genlmsghdr of version 1."""
    return struct.pack("=IHHIIBBH", 20 + len(attributes), kind, flags, number, 0, command, 1, 0) + attributes


def answer(number: int, error: int = 0) -> bytes:
    """NLMSG_ERROR (2) to the message of that number, with the beginning of it."""
    return struct.pack("=IHHIIi", 36, 2, 0, number, 0, -error) + bytes(16)


# The answer of nlctrl (16): CTRL_ATTR_FAMILY_ID (1), CTRL_ATTR_MCAST_GROUPS (7), each with its name (1) and number (2).
KNOWN = attribute(1, struct.pack("=H", FAMILY)) + attribute(
    7, attribute(1, attribute(1, b"nbd_mc_group\0") + u32(2, GROUP))
)


class Kernel:
    """Stands for the socket: the kernel has the family, and answers `refusal` to each message."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.refusal = 0
        self.closed = False
        self.answers: list[bytes] = []

    def bind(self, address: tuple[int, int]) -> None:
        assert address == (0, 0)

    def send(self, data: bytes) -> None:
        kind, number = struct.unpack_from("=4xH2xI", data)
        if kind == 16 and not self.refusal:
            assert data == message(16, 3, attribute(2, b"nbd\0"), REQUEST, number)  # CTRL_CMD_GETFAMILY by name
            self.answers.append(message(16, 1, KNOWN, number=number))
        elif kind != 16:
            self.sent.append(data)
        self.answers.append(answer(number, self.refusal))

    def recv(self, _: int) -> bytes:
        return self.answers.pop(0)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(netlink.socket, "socket", lambda *_: made)
    return made


def connect(family: netlink.Family, timeout: int = 0) -> None:
    family.connect(
        3, size=1 << 40, block_size=4096, flags=0x105, sockets=[5, 6], dead_conn_timeout=300, timeout=timeout,
        client_flags=netlink.NBD_CFLAG_DISCONNECT_ON_CLOSE, backend="disk",
    )  # fmt: skip


CONNECTED = (
    u32(INDEX, 3)
    + u64(SIZE, 1 << 40)
    + u64(BLOCK_SIZE, 4096)
    + u64(SERVER_FLAGS, 0x105)
    + u64(CLIENT_FLAGS, 2)
    + u64(DEAD_CONN, 300)
    + sockets(5, 6)
    + attribute(BACKEND, b"disk\0")
)
NAMED = u32(INDEX, 3) + attribute(BACKEND, b"disk\0")
MESSAGES: dict[str, tuple[Callable[[netlink.Family], None], int, bytes]] = {
    "connect": (connect, CONNECT, CONNECTED),
    "connect, timeout": (lambda family: connect(family, 60), CONNECT, CONNECTED + u64(TIMEOUT, 60)),
    "disconnect": (lambda family: family.disconnect(3), DISCONNECT, u32(INDEX, 3)),
    "nothing": (lambda family: family.reconfigure(3, "disk"), RECONFIGURE, NAMED),
    "size": (lambda family: family.reconfigure(3, "disk", size=512), RECONFIGURE, NAMED + u64(SIZE, 512)),
    "timeout off": (lambda family: family.reconfigure(3, "disk", timeout=0), RECONFIGURE, NAMED + u64(TIMEOUT, 0)),
    "fail at once": (
        lambda family: family.reconfigure(3, "disk", dead_conn_timeout=0, client_flags=0),
        RECONFIGURE,
        NAMED + u64(DEAD_CONN, 0) + u64(CLIENT_FLAGS, 0),
    ),
    "socket": (lambda family: family.reconfigure(3, "disk", sockets=[9]), RECONFIGURE, NAMED + sockets(9)),
}


@pytest.mark.parametrize(("call", "command", "attributes"), MESSAGES.values(), ids=MESSAGES)
def test_message_is_that_of_the_header(
    kernel: Kernel, call: Callable[[netlink.Family], None], command: int, attributes: bytes
) -> None:
    with netlink.Family() as family:
        call(family)
    assert kernel.sent == [message(FAMILY, command, attributes, REQUEST, 2)]
    assert kernel.closed


def test_a_tag_is_sent_as_utf_8(kernel: Kernel) -> None:
    """The command line refuses invalid ones."""
    with netlink.Family() as family:
        family.reconfigure(3, "ä")
    assert kernel.sent[0].endswith(attribute(BACKEND, b"\xc3\xa4\0"))


@pytest.mark.parametrize(("call", "_command", "_attributes"), MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBUSY])
def test_refusal_has_the_kernels_number(
    kernel: Kernel, call: Callable[[netlink.Family], None], _command: int, _attributes: bytes, number: int
) -> None:
    with netlink.Family() as family:
        kernel.refusal = number
        with pytest.raises(OSError, match="netlink") as caught:
            call(family)
    assert caught.value.errno == number


def test_a_farewell_is_complete_before_it_is_sent(kernel: Kernel) -> None:
    with netlink.Family() as family, family.farewell(3) as farewell:
        assert farewell.data == message(FAMILY, DISCONNECT, u32(INDEX, 3), REQUEST, 1)


def test_missing_family_is_enoent_and_leaves_nothing_open(kernel: Kernel) -> None:
    kernel.refusal = errno.ENOENT
    with pytest.raises(FileNotFoundError):
        netlink.Family()
    assert kernel.closed


def test_an_answer_comes_in_one_datagram_or_in_several(kernel: Kernel) -> None:
    with netlink.Family() as family:
        kernel.answers = [message(FAMILY, CONNECT, u32(INDEX, 3), number=2) + answer(2, errno.EBUSY)]
        with pytest.raises(OSError, match="busy"):
            connect(family)


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next_one(kernel: Kernel) -> None:
    """A signal may end the wait for it."""
    with netlink.Family() as family:
        kernel.answers = [answer(1, errno.EBUSY)]
        family.disconnect(3)
        assert kernel.answers == []


# -- a family that every kernel has ----------------------------------------------------------------------------------


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_family_that_the_kernel_has_not_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_files()
    monkeypatch.setattr(netlink, "FAMILY", "nbd_nowhere")
    with pytest.raises(FileNotFoundError):
        netlink.Family()
    assert open_files() == before


def test_what_the_kernel_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """nlctrl, generic netlink's own family, does not know a command of that number."""
    before = open_files()
    monkeypatch.setattr(netlink, "FAMILY", "nlctrl")
    monkeypatch.setattr(netlink, "MULTICAST_GROUP", "notify")
    monkeypatch.setattr(netlink, "NBD_CMD_DISCONNECT", 99)
    with netlink.Family() as family:
        for _ in range(2):
            with pytest.raises(OSError, match="netlink") as caught:
                family.disconnect(0)
            assert caught.value.errno == errno.EOPNOTSUPP
        with family.farewell(0) as farewell, pytest.raises(OSError, match="not supported"):
            farewell.send()
        links = family.dead_links()
        assert links.read() == []
        links.close()
    assert open_files() == before


# -- announcements -----------------------------------------------------------------------------------------------------


class Announcer:
    """Stands for the socket of the multicast group."""

    def __init__(self, *events: bytes | OSError) -> None:
        self.events = list(events)
        self.joined: list[tuple[int, int, int]] = []

    def bind(self, _: object) -> None:
        """To no address of its own."""

    def setsockopt(self, *option: int) -> None:
        self.joined.append(option)  # type: ignore[arg-type]

    def recv(self, _: int) -> bytes:
        event = self.events.pop(0) if self.events else BlockingIOError()
        if isinstance(event, OSError):
            raise event
        return event


def heard(monkeypatch: pytest.MonkeyPatch, announcer: Announcer) -> list[int] | None:
    with monkeypatch.context() as patch:
        patch.setattr(netlink.socket, "socket", lambda *_: announcer)
        links = netlink.DeadLinks(GROUP, FAMILY)
    assert announcer.joined == [(270, 1, GROUP)]  # SOL_NETLINK, NETLINK_ADD_MEMBERSHIP
    return links.read()


def dead(index: int) -> bytes:
    return message(FAMILY, LINK_DEAD, u32(INDEX, index))


LOST = OSError(errno.ENOBUFS, "No buffer space available")


@pytest.mark.parametrize(
    ("events", "indices"),
    [
        ([], []),
        ([dead(0)], [0]),
        ([dead(5), dead(5), dead(1)], [5, 5, 1]),
        ([message(FAMILY, CONNECT, u32(INDEX, 5)), dead(2)], [2]),
        ([message(FAMILY + 1, LINK_DEAD, u32(INDEX, 5)), dead(2)], [2]),
        ([dead(1), LOST], None),
    ],
)
def test_dead_connections_are_heard_of(
    monkeypatch: pytest.MonkeyPatch, events: list[bytes | OSError], indices: list[int] | None
) -> None:
    assert heard(monkeypatch, Announcer(*events)) == indices


def test_any_other_error_is_not_taken_for_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="bad"):
        heard(monkeypatch, Announcer(OSError(errno.EBADF, "bad")))
