# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages to the kernel, byte by byte as include/uapi/linux/nbd-netlink.h has them; and its announcements."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, ctrlmsg, genlmsg, nla

from nbdattach.kernel import dead_links, genetlink, netlink

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
    monkeypatch.setattr(genetlink.socket, "socket", lambda *_: made)
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


class Theirs(genlmsg):  # type: ignore[misc]
    """The messages of the family as pyroute2 makes them, with the names of the header."""

    nla_map = (
        ("NBD_ATTR_UNSPEC", "none"),
        ("NBD_ATTR_INDEX", "uint32"),
        ("NBD_ATTR_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_TIMEOUT", "uint64"),
        ("NBD_ATTR_SERVER_FLAGS", "uint64"),
        ("NBD_ATTR_CLIENT_FLAGS", "uint64"),
        ("NBD_ATTR_SOCKETS", "sockets"),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", "uint64"),
        ("NBD_ATTR_DEVICE_LIST", "hex"),
        ("NBD_ATTR_BACKEND_IDENTIFIER", "asciiz"),
    )

    class sockets(nla):  # type: ignore[misc]  # noqa: N801 - pyroute2 finds it by the name in nla_map
        nla_map = (("NBD_SOCK_ITEM_UNSPEC", "none"), ("NBD_SOCK_ITEM", "item"))

        class item(nla):  # type: ignore[misc]  # noqa: N801
            nla_map = (("NBD_SOCK_UNSPEC", "none"), ("NBD_SOCK_FD", "uint32"))


def theirs(form: type[genlmsg], kind: int, command: int, number: int, attributes: list[tuple[str, Any]]) -> bytes:
    made = form()
    made["cmd"], made["version"], made["attrs"] = command, 1, attributes
    made["header"]["type"], made["header"]["sequence_number"] = kind, number
    made["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK
    made.encode()
    return bytes(made.data)


@given(
    sockets=st.lists(st.integers(0, 2**32 - 1), max_size=200),
    values=st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=3),
    index=st.integers(0, 2**32 - 1),
    tag=st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=90),
    family=st.integers(16, 1023),
)
def test_pyroute2_makes_the_same_message(
    sockets: list[int], values: list[int], index: int, tag: str, family: int
) -> None:
    size, timeout, patience = values
    sent: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(genetlink.socket, "socket", lambda *_: Kernel())
        patch.setattr(genetlink.Asking, "family", lambda *_: (family, {}))
        with netlink.Family() as ours:
            asking = ours._socket
            patch.setattr(asking, "ask", lambda data: sent.append(data))
            ours.connect(
                index, size=size, block_size=timeout, flags=patience, sockets=sockets, dead_conn_timeout=patience,
                timeout=timeout, client_flags=size, backend=tag,
            )  # fmt: skip
            ours.reconfigure(
                index, tag, size=size, timeout=timeout, dead_conn_timeout=patience, client_flags=1, sockets=sockets
            )
            ours.disconnect(index)
    listed = {"attrs": [("NBD_SOCK_ITEM", {"attrs": [("NBD_SOCK_FD", one)]}) for one in sockets]}
    connecting = [
        ("NBD_ATTR_INDEX", index),
        ("NBD_ATTR_SIZE_BYTES", size),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", timeout),
        ("NBD_ATTR_SERVER_FLAGS", patience),
        ("NBD_ATTR_CLIENT_FLAGS", size),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", patience),
        ("NBD_ATTR_SOCKETS", listed),
        ("NBD_ATTR_BACKEND_IDENTIFIER", tag),
        *([("NBD_ATTR_TIMEOUT", timeout)] if timeout else []),
    ]
    changing = [
        ("NBD_ATTR_INDEX", index),
        ("NBD_ATTR_BACKEND_IDENTIFIER", tag),
        ("NBD_ATTR_SIZE_BYTES", size),
        ("NBD_ATTR_TIMEOUT", timeout),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", patience),
        ("NBD_ATTR_CLIENT_FLAGS", 1),
        *([("NBD_ATTR_SOCKETS", listed)] if sockets else []),
    ]
    assert sent == [
        theirs(Theirs, family, CONNECT, 1, connecting),
        theirs(Theirs, family, RECONFIGURE, 2, changing),
        theirs(Theirs, family, DISCONNECT, 3, [("NBD_ATTR_INDEX", index)]),
    ]


def test_pyroute2_makes_the_same_question_for_the_family(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    send = kernel.send

    def noting(data: bytes) -> None:
        asked.append(data)
        send(data)

    monkeypatch.setattr(kernel, "send", noting)
    netlink.Family().close()
    assert asked == [theirs(ctrlmsg, 16, 3, 1, [("CTRL_ATTR_FAMILY_NAME", "nbd")])]


def test_pyroute2_reads_the_same_from_the_kernels_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a family that every kernel has, with all that the kernel tells about it."""
    told: list[bytes] = []
    ask = genetlink.Asking.ask

    def noting(asking: genetlink.Asking, data: bytes) -> list[bytes]:
        told.extend(ask(asking, data))
        return told

    monkeypatch.setattr(genetlink.Asking, "ask", noting)
    monkeypatch.setattr(netlink, "FAMILY", "nlctrl")
    with netlink.Family() as family:
        answer = ctrlmsg(told[0])
        answer.decode()
        groups = answer.get_attr("CTRL_ATTR_MCAST_GROUPS")
        names = {one.get_attr("CTRL_ATTR_MCAST_GRP_NAME"): one.get_attr("CTRL_ATTR_MCAST_GRP_ID") for one in groups}
        assert (family.number, family.groups) == (answer.get_attr("CTRL_ATTR_FAMILY_ID"), names)
        assert names


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
    links = dead_links.subscribed()
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
        patch.setattr(genetlink.socket, "socket", lambda *_: announcer)
        links = dead_links.DeadLinks(GROUP, FAMILY)
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
