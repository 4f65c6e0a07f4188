# SPDX-License-Identifier: GPL-2.0-or-later
"""Choosing an export: NBD_OPT_GO and NBD_OPT_INFO, the answers to them, and the way without them. No sockets."""

from __future__ import annotations

import itertools

import pytest
import wire
from script import fails, play, succeeds

from nbdattach.errors import BrokenProtocol, NbdattachError, NoConnection, Refused, TlsFailed, UnknownExport
from nbdattach.protocol import handshake
from nbdattach.protocol.export import BlockSize, Export
from nbdattach.protocol.steps import Steps
from nbdattach.protocol.target import Target

DEFAULT = Target(host="db1")
NAMED = Target(host="db1", export="disk")
HELLO = wire.greeting()
SIZED, ACK = wire.sized(wire.GO), wire.ack(wire.GO)
NO_GO = wire.reply(wire.GO, wire.UNSUP)
NO_INFO = wire.reply(wire.INFO, wire.UNSUP)
NOTHING = wire.sized(wire.INFO, 0) + wire.ack(wire.INFO)
LISTED = wire.listed(b"root") + wire.listed(b"swap") + wire.ack(wire.LIST)


def test_constants_are_the_specifications() -> None:
    _, sent = succeeds(handshake.enter, NAMED, HELLO, SIZED, ACK)
    asked = (
        bytes.fromhex("49484156454f5054 00000007 00000010 00000004") + b"disk" + bytes.fromhex("0003 0001 0002 0003")
    )
    assert sent == [bytes.fromhex("00000003"), asked]


# -- row 4: the default export ------------------------------------------------------------------------------------


@pytest.mark.row(4)
def test_no_name_asks_for_the_default_export() -> None:
    export, sent = succeeds(handshake.enter, DEFAULT, HELLO, SIZED, ACK)
    assert sent[1] == wire.asks(wire.GO, b"")
    assert export == Export("", wire.SIZE, wire.FLAGS, "newstyle-fixed")


@pytest.mark.row(4)
def test_default_export_goes_by_export_name_with_an_empty_name() -> None:
    _, sent = succeeds(handshake.enter, DEFAULT, wire.greeting(wire.NO_ZEROES), wire.exported())
    assert sent[1] == wire.option(wire.EXPORT_NAME)


@pytest.mark.row(4)
def test_default_export_need_not_be_in_the_list() -> None:
    _, sent = succeeds(handshake.enter, DEFAULT, HELLO, NO_GO, LISTED, wire.exported())
    assert sent[2:] == [wire.option(wire.LIST), wire.option(wire.EXPORT_NAME)]


@pytest.mark.row(4)
def test_missing_default_export_is_called_so() -> None:
    error, _ = fails(handshake.enter, DEFAULT, HELLO, wire.reply(wire.GO, wire.UNKNOWN), LISTED)
    assert str(error) == "nbd://db1: the server has no default export"
    assert error.hint == "it offers: root, swap; see nbdattach list nbd://db1"


# -- row 5: GO, and the way round it --------------------------------------------------------------------------------

INFORMATION = (
    SIZED,
    wire.blocks(wire.GO, 512, 4096, 1 << 25),
    wire.info(wire.GO, 1, b"disk"),
    wire.info(wire.GO, 2, b"spare"),
)


@pytest.mark.row(5)
@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_information_comes_in_any_order(order: tuple[int, ...]) -> None:
    export, _ = succeeds(handshake.enter, NAMED, HELLO, *(INFORMATION[i] for i in order), ACK)
    assert export == Export("disk", wire.SIZE, wire.FLAGS, "newstyle-fixed", "spare", BlockSize(512, 4096, 1 << 25))


@pytest.mark.row(5)
@pytest.mark.parametrize("kind", [4, 0x7FFF, 0xFFFF])
@pytest.mark.parametrize("size", [0, 1, handshake.MAX_INFO_REPLY - 2])
def test_unknown_information_is_skipped(kind: int, size: int) -> None:
    export, _ = succeeds(handshake.enter, NAMED, HELLO, wire.info(wire.GO, kind, bytes(size)), SIZED, ACK)
    assert export == Export("disk", wire.SIZE, wire.FLAGS, "newstyle-fixed")


@pytest.mark.row(5)
def test_the_servers_own_name_of_the_export_counts() -> None:
    export, _ = succeeds(handshake.enter, DEFAULT, HELLO, SIZED, wire.info(wire.GO, 1, b"root"), ACK)
    assert export.name == "root"


@pytest.mark.row(5)
def test_name_and_description_that_are_no_utf8_are_kept() -> None:
    told = wire.info(wire.GO, 1, b"\xff"), wire.info(wire.GO, 2, b"\xe9")
    export, _ = succeeds(handshake.enter, DEFAULT, HELLO, SIZED, *told, ACK)
    assert (export.name, export.description) == ("\udcff", "\udce9")


@pytest.mark.row(5)
def test_name_that_is_no_utf8_goes_out_as_the_bytes_it_was() -> None:
    _, sent = succeeds(handshake.enter, Target(host="db1", export="a\udcff"), HELLO, SIZED, ACK)
    assert sent[1] == wire.asks(wire.GO, b"a\xff")


@pytest.mark.row(5)
@pytest.mark.parametrize("size", [0, 1 << 62, (1 << 64) - 1])
def test_size_is_kept_to_the_byte(size: int) -> None:
    export, _ = succeeds(handshake.enter, NAMED, HELLO, wire.sized(wire.GO, size, 0xFFFF), ACK)
    assert (export.size, export.flags) == (size, 0xFFFF)


@pytest.mark.row(5)
def test_inspect_asks_by_info_and_enters_nothing() -> None:
    """To enter ends a qemu-nbd without --persistent, and takes one of nbd-server's maxconnections."""
    said = (
        wire.sized(wire.INFO),
        wire.blocks(wire.INFO, 512, 4096, 1 << 25),
        wire.info(wire.INFO, 2, b"spare"),
        wire.ack(wire.INFO),
    )
    export, sent = succeeds(handshake.inspect, NAMED, HELLO, *said)
    assert sent == [wire.client_flags(), wire.asks(wire.INFO, b"disk"), wire.option(wire.ABORT)]
    assert export == Export("disk", wire.SIZE, wire.FLAGS, "newstyle-fixed", "spare", BlockSize(512, 4096, 1 << 25))


@pytest.mark.row(5)
@pytest.mark.parametrize("answer", [NO_INFO, NOTHING])
def test_inspect_enters_if_info_is_unknown_or_says_size_0(answer: bytes) -> None:
    """nbd-server says 0 until a client enters. It leaves by the transmission phase, without NBD_OPT_ABORT."""
    export, sent = succeeds(handshake.inspect, NAMED, HELLO, answer, *INFORMATION, ACK)
    assert sent[1:] == [wire.asks(wire.INFO, b"disk"), wire.asks(wire.GO, b"disk"), wire.DISC]
    assert export == Export("disk", wire.SIZE, wire.FLAGS, "newstyle-fixed", "spare", BlockSize(512, 4096, 1 << 25))


@pytest.mark.row(5)
def test_without_go_the_list_then_the_export_name() -> None:
    said = HELLO, NO_GO, wire.listed(b"root"), wire.listed(b"disk"), wire.ack(wire.LIST), wire.exported()
    export, sent = succeeds(handshake.enter, NAMED, *said)
    asked = [wire.asks(wire.GO, b"disk"), wire.option(wire.LIST), wire.option(wire.EXPORT_NAME, b"disk")]
    assert sent[1:] == asked
    assert export == Export("disk", wire.SIZE, wire.FLAGS, "newstyle-fixed")


@pytest.mark.row(5)
def test_inspect_tells_a_size_of_0_as_it_is() -> None:
    export, _ = succeeds(handshake.inspect, NAMED, HELLO, NOTHING, wire.sized(wire.GO, 0), ACK)
    assert export.size == 0


@pytest.mark.row(6)
def test_export_that_info_does_not_know_is_unknown() -> None:
    error, played = fails(handshake.inspect, NAMED, HELLO, wire.reply(wire.INFO, wire.UNKNOWN), LISTED)
    assert type(error) is UnknownExport
    assert error.hint == "it offers: root, swap; see nbdattach list nbd://db1"
    assert played.sent[1:] == [wire.asks(wire.INFO, b"disk"), wire.option(wire.LIST), wire.option(wire.ABORT)]


@pytest.mark.row(6)
@pytest.mark.parametrize("kind", [wire.POLICY, wire.INVALID, wire.TLS_REQD, wire.SHUTDOWN, 0x8000FFFF])
def test_refused_inspect_aborts_once_and_sends_no_request(kind: int) -> None:
    _, played = fails(handshake.inspect, NAMED, HELLO, wire.reply(wire.INFO, kind))
    assert played.sent == [wire.client_flags(), wire.asks(wire.INFO, b"disk"), wire.option(wire.ABORT)]


@pytest.mark.row(6)
def test_inspect_that_may_not_enter_aborts_once_and_sends_no_request() -> None:
    _, played = fails(handshake.inspect, NAMED, HELLO, NOTHING, wire.reply(wire.GO, wire.POLICY))
    assert played.sent[1:] == [wire.asks(wire.INFO, b"disk"), wire.asks(wire.GO, b"disk"), wire.option(wire.ABORT)]


@pytest.mark.row(5)
def test_inspect_without_go_enters_by_name_and_leaves_the_transmission_phase() -> None:
    said = HELLO, NO_INFO, NO_GO, wire.listed(b"disk"), wire.ack(wire.LIST), wire.exported()
    _, sent = succeeds(handshake.inspect, NAMED, *said)
    asked = [
        wire.asks(wire.INFO, b"disk"),
        wire.asks(wire.GO, b"disk"),
        wire.option(wire.LIST),
        wire.option(wire.EXPORT_NAME, b"disk"),
    ]
    assert sent == [wire.client_flags(), *asked, wire.DISC]


@pytest.mark.row(5)
def test_without_go_and_without_no_zeroes_the_zeroes_are_read() -> None:
    said = wire.greeting(wire.FIXED), NO_GO, wire.ack(wire.LIST), wire.exported(zeroes=wire.ZEROES)
    succeeds(handshake.enter, DEFAULT, *said)


@pytest.mark.row(5)
def test_name_that_is_not_in_the_list_is_unknown() -> None:
    error, played = fails(handshake.enter, NAMED, HELLO, NO_GO, LISTED)
    assert type(error) is UnknownExport
    assert str(error) == "nbd://db1/disk: the server has no export named 'disk'"
    assert error.hint == "it offers: root, swap; see nbdattach list nbd://db1"
    assert played.sent[2:] == [wire.option(wire.LIST), wire.option(wire.ABORT)]


@pytest.mark.row(5)
@pytest.mark.parametrize("kind", [wire.UNSUP, wire.POLICY, wire.INVALID, wire.PLATFORM, wire.SHUTDOWN])
def test_server_that_cannot_list_is_taken_at_its_word(kind: int) -> None:
    _, sent = succeeds(handshake.enter, NAMED, HELLO, NO_GO, wire.reply(wire.LIST, kind, b"no"), wire.exported())
    assert sent[3:] == [wire.option(wire.EXPORT_NAME, b"disk")]


@pytest.mark.row(5)
@pytest.mark.parametrize("heard", range(10))
@pytest.mark.parametrize(("target", "what"), [(NAMED, "the export 'disk'"), (DEFAULT, "its default export")])
@pytest.mark.parametrize("before", [wire.greeting(0), HELLO + NO_GO + wire.reply(wire.LIST, wire.POLICY)])
def test_connection_closed_in_answer_to_export_name_is_told_as_that(
    heard: int, target: Target, what: str, before: bytes
) -> None:
    """The server may have the export, in use or for other clients; and it was not asked for a list, or refused it."""
    error, _ = fails(handshake.enter, target, before, wire.exported()[:heard])
    assert type(error) is Refused
    assert str(error) == f"{target.uri}: the server closed the connection when asked for {what}"
    assert error.hint == (
        "an old server gives no reason: a wrong name, an export in use, or a client that it denies; see its log"
    )


@pytest.mark.row(5)
@pytest.mark.parametrize(
    ("listing", "hint"),
    [
        (LISTED, "it offers: root, swap; see nbdattach list nbd://db1"),
        (wire.ack(wire.LIST), "it lists no exports: see its configuration for their names"),
    ],
)
def test_closed_default_export_of_a_server_that_has_listed_others_is_told_with_them(listing: bytes, hint: str) -> None:
    error, _ = fails(handshake.enter, DEFAULT, HELLO, NO_GO, listing)
    assert type(error) is UnknownExport
    assert str(error) == "nbd://db1: the server has no default export"
    assert error.hint == hint


NO_BACKEND = wire.reply(wire.GO, wire.UNKNOWN, b"no backend")
OF_NBDKIT = "see its log: nbdkit answers this if it cannot open the disk of the export"
UNLISTED = "or the export has a name that it does not list: -N NAME"


@pytest.mark.row(5)
@pytest.mark.parametrize(("answer", "words"), [(NO_GO, ""), (NO_BACKEND, "; it says: 'no backend'")])
def test_a_listed_export_that_the_server_does_not_open_is_not_called_unknown(answer: bytes, words: str) -> None:
    """By NBD_OPT_GO an answer of nbdkit; by NBD_OPT_EXPORT_NAME the server only closes the connection."""
    error, _ = fails(handshake.enter, NAMED, HELLO, answer, wire.listed(b"disk"), wire.ack(wire.LIST))
    assert type(error) is Refused
    assert str(error) == f"nbd://db1/disk: the server lists the export, but refuses to open it{words}"
    assert error.hint == (OF_NBDKIT if words else DENIED)


@pytest.mark.row(5)
@pytest.mark.parametrize(("answer", "words"), [(NO_GO, ""), (NO_BACKEND, "; it says: 'no backend'")])
@pytest.mark.parametrize(("more", "last"), [(b"", UNLISTED), (wire.listed(b"root"), "it offers: root")])
def test_a_listed_default_export_that_the_server_does_not_open_is_told_without_quotes(
    answer: bytes, words: str, more: bytes, last: str
) -> None:
    """nbdkit's filter exportname lists '' by itself, and may be told to open other names only."""
    error, _ = fails(handshake.enter, DEFAULT, HELLO, answer, wire.listed(b""), more, wire.ack(wire.LIST))
    assert type(error) is Refused
    assert str(error) == f"nbd://db1: the server lists a default export, but refuses to open it{words}"
    assert error.hint == f"{OF_NBDKIT if words else DENIED}; {last}"


@pytest.mark.row(5)
def test_go_closed_at_any_byte_is_no_connection() -> None:
    said = HELLO + b"".join(INFORMATION) + ACK
    for end in range(len(said)):
        error, _ = fails(handshake.enter, NAMED, said[:end])
        assert isinstance(error, NoConnection)


@pytest.mark.row(5)
@pytest.mark.parametrize("second", [wire.sized(wire.GO, 512), wire.sized(wire.GO, wire.SIZE, 1)])
def test_two_sizes_or_flags_of_one_export_are_refused(second: bytes) -> None:
    error, _ = fails(handshake.enter, NAMED, HELLO, SIZED, second)
    assert type(error) is BrokenProtocol
    assert str(error) == "nbd://db1/disk: the server announced two different sizes or flags for one export"


@pytest.mark.row(5)
def test_the_same_size_twice_is_no_contradiction() -> None:
    succeeds(handshake.enter, NAMED, HELLO, SIZED, SIZED, ACK)


@pytest.mark.row(5)
def test_yes_without_a_size_is_refused() -> None:
    error, _ = fails(handshake.enter, NAMED, HELLO, ACK)
    assert str(error) == "nbd://db1/disk: the server accepted the option without announcing the export's size"


POSSIBLE = [(1, 1, 1), (1, 4096, 0xFFFFFFFF), (512, 512, 512), (65536, 65536, 65536), (512, 4097, 33554432)]
IMPOSSIBLE = [(0, 4096, 65536), (3, 4096, 65536), (513, 4096, 65536), (131072, 131072, 1 << 25), (4096, 4096, 2048)]


@pytest.mark.row(5)
@pytest.mark.parametrize("sizes", POSSIBLE)
def test_block_sizes_are_kept(sizes: tuple[int, int, int]) -> None:
    export, _ = succeeds(handshake.enter, NAMED, HELLO, SIZED, wire.blocks(wire.GO, *sizes), ACK)
    assert export.block_size == BlockSize(*sizes)


@pytest.mark.row(5)
@pytest.mark.parametrize("sizes", [*IMPOSSIBLE, (1, 1, 0), (0, 0, 0)])
def test_impossible_block_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    error, _ = fails(handshake.enter, NAMED, HELLO, SIZED, wire.blocks(wire.GO, *sizes))
    assert type(error) is BrokenProtocol
    minimum, preferred, maximum = sizes
    numbers = f"minimum {minimum}, preferred {preferred}, maximum {maximum}"
    assert str(error) == f"nbd://db1/disk: impossible block sizes: {numbers}"


# -- faulty replies --------------------------------------------------------------------------------------------------


@pytest.mark.row(5)
@pytest.mark.parametrize("magic", [b"\0" * 8, wire.IHAVEOPT, wire.REPLY_MAGIC[:-1] + b"\xa8"])
def test_reply_with_another_magic_is_refused(magic: bytes) -> None:
    error, played = fails(handshake.enter, NAMED, HELLO, magic, ACK[8:], b"more")
    assert str(error) == f"nbd://db1/disk: an option reply began with the magic {int.from_bytes(magic, 'big'):#x}"
    assert played.unread == b"more"


@pytest.mark.row(5)
@pytest.mark.parametrize("other", [wire.INFO, wire.LIST, 0, 0xFFFFFFFF])
def test_reply_to_another_option_is_refused(other: int) -> None:
    error, _ = fails(handshake.enter, NAMED, HELLO, wire.ack(other))
    assert type(error) is BrokenProtocol
    assert str(error) == f"nbd://db1/disk: a reply to option {other}, but we had sent NBD_OPT_GO"


@pytest.mark.row(5)
@pytest.mark.parametrize(
    ("kind", "name"), [(wire.SERVER, "NBD_REP_SERVER"), (4, "reply type 0x4"), (0, "reply type 0x0")]
)
def test_reply_of_another_type_is_refused(kind: int, name: str) -> None:
    error, _ = fails(handshake.enter, NAMED, HELLO, wire.reply(wire.GO, kind))
    assert type(error) is BrokenProtocol
    assert str(error) == f"nbd://db1/disk: {name} in answer to NBD_OPT_GO"


@pytest.mark.row(5)
@pytest.mark.parametrize("size", [1, 4096, 0xFFFFFFFF])
def test_ack_with_data_is_refused_before_reading_it(size: int) -> None:
    error, played = fails(handshake.enter, NAMED, HELLO, SIZED, wire.header(wire.GO, wire.ACK, size), b"data")
    assert str(error) == f"nbd://db1/disk: NBD_REP_ACK with {size} bytes of data"
    assert played.unread == b"data"


@pytest.mark.row(5)
@pytest.mark.parametrize("size", [0, 1, handshake.MAX_INFO_REPLY + 1, 0xFFFFFFFF])
def test_information_of_impossible_length_is_refused_before_reading_it(size: int) -> None:
    error, played = fails(handshake.enter, NAMED, HELLO, wire.header(wire.GO, wire.INFORMATION, size), b"data")
    assert str(error) == f"nbd://db1/disk: an NBD_REP_INFO of {size} bytes"
    assert played.unread == b"data"


WRONG = [(0, 9), (0, 11), (0, 0), (3, 11), (3, 13), (3, 0), (1, 4097), (2, 4097)]


@pytest.mark.row(5)
@pytest.mark.parametrize(("kind", "size"), WRONG)
def test_known_information_of_wrong_length_is_refused_before_reading_it(kind: int, size: int) -> None:
    error, played = fails(handshake.enter, NAMED, HELLO, wire.info(wire.GO, kind, bytes(size)))
    assert str(error) == f"nbd://db1/disk: an information reply of type {kind} with {size} bytes of data"
    assert played.unread == bytes(size)


@pytest.mark.row(5)
def test_longest_name_and_description_are_taken() -> None:
    told = wire.info(wire.GO, 1, b"n" * 4096), wire.info(wire.GO, 2, b"d" * 4096)
    export, _ = succeeds(handshake.enter, NAMED, HELLO, SIZED, *told, ACK)
    assert (export.name, export.description) == ("n" * 4096, "d" * 4096)


@pytest.mark.row(5)
def test_replies_without_end_are_cut_off() -> None:
    error, played = fails(handshake.enter, NAMED, HELLO, wire.info(wire.GO, 9, b"") * 1000)
    assert str(error) == "nbd://db1/disk: more than 64 replies to NBD_OPT_GO"
    assert len(played.receives) < 200


# -- row 6: option errors told apart -----------------------------------------------------------------------------------

DENIED = (
    "see its log; nbd-server does this if maxconnections clients have come since its start, if authfile or prerun"
    " denies this client, or if it cannot open its file"
)
REFUSALS: list[tuple[int, type[NbdattachError], str, str]] = [
    (
        wire.POLICY,
        Refused,
        "the server's policy refuses this export to this client",
        DENIED,
    ),
    (wire.INVALID, Refused, "the server calls our NBD_OPT_GO invalid", "--debug shows each step"),
    (
        wire.PLATFORM,
        Refused,
        "NBD_OPT_GO does not work on the server's platform",
        "see the server's log",
    ),
    (wire.TLS_REQD, TlsFailed, "the server requires TLS", "use --tls, or nbds://db1/disk"),
    (wire.SHUTDOWN, Refused, "the server is shutting down", "try again when it is back"),
    (
        wire.BLOCK_SIZE_REQD,
        Refused,
        "the server requires clients to respect its block sizes, but announces none",
        "see the server's log",
    ),
    (
        wire.TOO_BIG,
        Refused,
        "the server calls our NBD_OPT_GO too big",
        "is the export's name too long for it?",
    ),
    (0x8000000A, Refused, "the server refused NBD_OPT_GO with the unknown error 0x8000000a", "see the server's log"),
    (0xFFFFFFFF, Refused, "the server refused NBD_OPT_GO with the unknown error 0xffffffff", "see the server's log"),
]


@pytest.mark.row(6)
@pytest.mark.parametrize(("kind", "of", "cause", "hint"), REFUSALS)
@pytest.mark.parametrize(("words", "said"), [(b"", ""), (b"no, %s {option}", "; it says: 'no, %s {option}'")])
def test_each_option_error_has_its_words(
    kind: int, of: type[NbdattachError], cause: str, hint: str, words: bytes, said: str
) -> None:
    error, played = fails(handshake.enter, NAMED, HELLO, wire.reply(wire.GO, kind, words))
    assert isinstance(error, of)
    assert str(error) == f"nbd://db1/disk: {cause}{said}"
    assert error.hint == hint
    assert played.sent[2:] == [wire.option(wire.ABORT)]
    assert played.unread == b""


@pytest.mark.row(6)
@pytest.mark.parametrize(("words", "said"), [(b"", ""), (b"gone", "; it says: 'gone'")])
def test_unknown_export_tells_what_there_is(words: bytes, said: str) -> None:
    error, played = fails(handshake.enter, NAMED, HELLO, wire.reply(wire.GO, wire.UNKNOWN, words), LISTED)
    assert type(error) is UnknownExport
    assert str(error) == f"nbd://db1/disk: the server has no export named 'disk'{said}"
    assert error.hint == "it offers: root, swap; see nbdattach list nbd://db1"
    assert played.sent[2:] == [wire.option(wire.LIST), wire.option(wire.ABORT)]


@pytest.mark.row(6)
@pytest.mark.parametrize(
    "after", [wire.reply(wire.LIST, wire.POLICY), b"", LISTED[:-1], b"\0" * 20, wire.reply(wire.LIST, wire.TLS_REQD)]
)
def test_unknown_export_stays_unknown_whatever_the_list_answers(after: bytes) -> None:
    error, _ = fails(handshake.enter, NAMED, HELLO, wire.reply(wire.GO, wire.UNKNOWN), after)
    assert str(error) == "nbd://db1/disk: the server has no export named 'disk'"
    assert error.hint == "it does not list its exports: see its configuration for their names"


@pytest.mark.row(6)
@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (b"\x1b[2Jred", r"\x1b[2Jred"),
        (b"two\nlines\r\t", r"two\nlines\r\t"),
        (b"%s %n {0}", "%s %n {0}"),
        ("right \u202eto left\u2066".encode(), r"right \u202eto left\u2066"),
        ("\u2028\u200b\ufeff".encode(), r"\u2028\u200b\ufeff"),
        (b"it's \\'", r"it\'s \\\'"),
        (b"\xff\0", r"\udcff\x00"),
        ("größer".encode(), "größer"),
    ],
)
def test_words_of_the_server_are_harmless_and_on_one_line(words: bytes, shown: str) -> None:
    error, _ = fails(handshake.enter, NAMED, HELLO, wire.reply(wire.GO, wire.POLICY, words))
    assert str(error) == f"nbd://db1/disk: the server's policy refuses this export to this client; it says: '{shown}'"


@pytest.mark.row(6)
def test_words_at_the_limit_are_read_and_cut() -> None:
    error, played = fails(handshake.enter, NAMED, HELLO, wire.reply(wire.GO, wire.POLICY, b"x" * 4096))
    assert played.unread == b""
    cause = "the server's policy refuses this export to this client"
    assert str(error) == f"nbd://db1/disk: {cause}; it says: '" + "x" * 200 + "...'"


@pytest.mark.row(6)
@pytest.mark.parametrize("size", [4097, 65536, 0xFFFFFFFF])
def test_words_over_the_limit_are_refused_before_they_are_read(size: int) -> None:
    error, played = fails(handshake.enter, NAMED, HELLO, wire.header(wire.GO, wire.POLICY, size), b"words")
    assert type(error) is BrokenProtocol
    assert str(error) == f"nbd://db1/disk: NBD_REP_ERR_POLICY with {size} bytes of text"
    assert played.unread == b"words"


# -- leaving, and being seen -------------------------------------------------------------------------------------------


@pytest.mark.row(6)
def test_nothing_is_sent_to_a_server_that_broke_the_protocol() -> None:
    _, played = fails(handshake.enter, NAMED, HELLO, wire.header(wire.GO, wire.ACK, 1))
    assert played.sent == [wire.client_flags(), wire.asks(wire.GO, b"disk")]


@pytest.mark.row(13)
def test_each_step_can_be_seen() -> None:
    played = play(handshake.enter(NAMED), HELLO + NO_GO + LISTED.replace(b"swap", b"disk") + wire.exported())
    assert played.notes == [
        "waiting for the server's greeting",
        "new style, handshake flags 0x3",
        "NBD_OPT_GO, 16 bytes of data",
        "NBD_REP_ERR_UNSUP, 0 bytes of data",
        "NBD_OPT_LIST, 0 bytes of data",
        "NBD_REP_SERVER, 8 bytes of data",
        "NBD_REP_SERVER, 8 bytes of data",
        "NBD_REP_ACK, 0 bytes of data",
        "NBD_OPT_EXPORT_NAME, 4 bytes of data",
    ]


def conversations() -> list[tuple[Steps[object], bytes]]:
    return [
        (handshake.enter(NAMED), HELLO + b"".join(INFORMATION) + ACK),
        (handshake.inspect(NAMED), HELLO + wire.sized(wire.INFO) + wire.ack(wire.INFO)),
        (handshake.inspect(NAMED), HELLO + NOTHING + SIZED + ACK),
        (
            handshake.inspect(NAMED),
            HELLO + NO_INFO + NO_GO + wire.listed(b"disk") + wire.ack(wire.LIST) + wire.exported(),
        ),
        (handshake.catalogue(NAMED), HELLO + LISTED + wire.reply(wire.INFO, wire.UNSUP)),
        (handshake.enter(Target(host="db1", tls=True)), HELLO + wire.ack(wire.STARTTLS) + SIZED + ACK),
        (handshake.inspect(DEFAULT), wire.oldstyle()),
    ]


@pytest.mark.row(13)
@pytest.mark.parametrize(("steps", "said"), conversations())
def test_every_option_sent_is_announced_before(steps: Steps[object], said: bytes) -> None:
    played = play(steps, said)
    assert played.error is None
    options = sum(isinstance(one, bytes) and len(one) > 4 for one in played.sent)
    assert sum(note.startswith(("NBD_OPT", "NBD_CMD")) for note in played.notes) == options
