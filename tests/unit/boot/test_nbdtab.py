# SPDX-License-Identifier: GPL-2.0-or-later
"""The text of a table: the meaning of its lines, and the places of its mistakes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdattach.boot import table
from nbdattach.boot.nbdtab import Entry, Table, parse
from nbdattach.cli import main
from nbdattach.connect_options import USUAL, ConnectOptions, ImageOptions
from nbdattach.device import Device
from nbdattach.errors import KernelRefused, Malformed
from nbdattach.operations import attachment, serving
from nbdattach.own_server.source import Source, source_of
from nbdattach.protocol.target import Target


def sound(text: str) -> tuple[Entry, ...]:
    """The entries of a table without mistakes."""
    found = parse(text, "nbdtab")
    assert [str(mistake.error) for mistake in found.mistakes] == []
    return found.entries


def entry(line: str) -> Entry:
    (found,) = sound(line)
    return found


def mistakes(text: str) -> list[str]:
    return [str(mistake.error) for mistake in parse(text, "nbdtab").mistakes]


# -- the meaning of lines ----------------------------------------------------------------------------------------------

LOCAL = Target("db1", export="disk")


def test_a_line_is_a_device_a_host_and_an_export() -> None:
    assert entry("nbd0 db1 disk") == Entry(1, Device(0), LOCAL, ConnectOptions())


@pytest.mark.parametrize(
    "text",
    [
        "nbd0 db1 disk",
        "nbd0 db1 disk\n",
        "/dev/nbd0 db1 disk",
        " nbd0 db1 disk \n",
        "\tnbd0\tdb1 \t disk\t\n",
        "nbd0 db1 disk\r\n",
        "nbd0 db1 disk # the database\n",
        "nbd0 db1 disk #the database",
        "nbd0 db1 disk\n# no newline at the end",
        "\n\n  \n\t\n# one\n #two\n#\nnbd0 db1 disk\n\n",
        "nbd0 DB1 disk",
        "nbd0 db1 disk persist",
        "nbd0 db1 disk no_optgo,_netdev,_x-systemd.requires=a",
        "nbd0 db1 disk port=10809",
        "nbd0 db1:10809 disk",
        "nbd0 nbd://db1/disk",
        "nbd0 nbd://db1/disk -",
        "nbd0 nbd://db1/disk - persist",
        "nbd0 nbd://db1 disk",
        "nbd0 nbd://db1/ disk persist",
    ],
)
def test_the_same_line(text: str) -> None:
    (found,) = sound(text)
    assert (found.device, found.target, found.options) == (Device(0), LOCAL, ConnectOptions())


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("nbd0 db1 disk port=2000", Target("db1", 2000, export="disk")),
        ("nbd0 10.0.0.1 disk", Target("10.0.0.1", export="disk")),
        ("nbd0 2001:db8::1 disk", Target("2001:db8::1", export="disk")),
        ("nbd0 2001:db8::1 disk port=2000", Target("2001:db8::1", 2000, export="disk")),
        ("nbd0 [2001:db8::1]:2000 disk", Target("2001:db8::1", 2000, export="disk")),
        ("nbd0 fe80::1%eth0 disk", Target("fe80::1%eth0", export="disk")),
        ("nbd0 /run/nbd.sock disk unix", Target(socket="/run/nbd.sock", export="disk")),
        ("nbd0 /run/nbd.sock disk", Target(socket="/run/nbd.sock", export="disk")),
        ("nbd0 /run/a://b disk", Target(socket="/run/a:/b", export="disk")),
        ("nbd0 nbd+unix:///disk?socket=/run/nbd.sock", Target(socket="/run/nbd.sock", export="disk")),
        ("nbd0 nbd+unix:///disk?socket=%00name", Target(socket="\0name", export="disk")),
        ("nbd0 nbd://db1:2000/a%20b", Target("db1", 2000, export="a b")),
        ("nbd0 nbd://db1", Target("db1")),
        ("nbd0 nbd://db1 swap", Target("db1", export="swap")),
        ("nbd0 nbds://db1 disk", Target("db1", export="disk", tls=True)),
        # As they are: no quoting, no escapes, no names with a meaning.
        ('nbd0 db1 ""', Target("db1", export='""')),
        ("nbd0 db1 -", Target("db1", export="-")),
        ("nbd0 db1 default", Target("db1", export="default")),
        ("nbd0 db1 a%20b", Target("db1", export="a%20b")),
        ("nbd0 db1 a\\040b#c", Target("db1", export="a\\040b#c")),
        ("nbd0 db1 \udcff\udce4", Target("db1", export="\udcff\udce4")),
        ("nbd0 db1 disk tls", Target("db1", export="disk", tls=True)),
        (
            "nbd0 /run/s disk unix,tls,tlshostname=db1",
            Target(socket="/run/s", export="disk", tls=True, tls_hostname="db1"),
        ),
        (
            "nbd0 db1 disk certfile=/c,keyfile=/k,cacertfile=/a,tlshostname=db",
            Target("db1", export="disk", tls=True, tls_cert="/c", tls_key="/k", tls_ca="/a", tls_hostname="db"),
        ),
        (
            "nbd0 nbd://db1/disk - tls-ca=/a,tls-no-verify",
            Target("db1", export="disk", tls=True, tls_ca="/a", tls_verify=False),
        ),
        ("nbd0 db1 disk tls-psk=/p", Target("db1", export="disk", tls=True, tls_psk_file="/p")),
    ],
)
def test_target(line: str, target: Target) -> None:
    assert entry(line).target == target


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("bs=4096", ConnectOptions(block_size=4096)),
        ("conns=4", ConnectOptions(connections=4)),
        ("conns=auto", ConnectOptions(connections=0)),
        ("timeout=30", ConnectOptions(io_timeout=30.0)),
        ("dead-timeout=60", ConnectOptions(on_loss=60.0)),
        ("swap,persist,preinit,size=512", ConnectOptions(swap=True, raw_size=512)),
        ("on-loss=wait,read-only", ConnectOptions(on_loss=math.inf, read_only=True)),
        ("on-loss=fail,no-reconnect", ConnectOptions(on_loss=0.0, reconnect=False)),
        ("tag=vm#1=a", ConnectOptions(tag="vm#1=a")),
        ("retry-for=90,connect-timeout=5", ConnectOptions(retry_for=90.0, connect_timeout=5.0)),
    ],
)
def test_options(options: str, expected: ConnectOptions) -> None:
    assert entry(f"nbd0 db1 disk {options}").options == expected


def test_options_hold_for_their_line_only() -> None:
    text = "nbd0 db1 disk port=2000,bs=4096,tls\nnbd1 db1 disk\nnbd2 db2 disk port=3000\n"
    assert [(one.target.port, one.options.block_size, one.target.tls) for one in sound(text)] == [
        (2000, 4096, True), (10809, None, False), (3000, None, False),
    ]  # fmt: skip


def test_the_same_target_at_two_devices_is_no_mistake() -> None:
    assert [one.target for one in sound("nbd0 db1 disk\nnbd1 db1 disk")] == [LOCAL, LOCAL]


@pytest.mark.parametrize(
    ("line", "image", "options"),
    [
        ("nbd0 /vm/disk.img -", "/vm/disk.img", USUAL),
        ("nbd0 /vm/disk -", "/vm/disk", USUAL),
        ("nbd0 /dev/vg/lv - persist", "/dev/vg/lv", USUAL),
        ("nbd0 /vm/d,1=a.img - format=vpc,snapshot", "/vm/d,1=a.img", ImageOptions(format="vpc", snapshot=True)),
        ("nbd0 /d - offset=0,cache=none", "/d", ImageOptions(offset=0, cache="none")),
        (f"nbd0 /{'x' * 200} -", f"/{'x' * 200}", USUAL),
        ("nbd0 /s disk", "", USUAL),
        ("nbd0 /s - unix", "", USUAL),
        ("nbd0 disk.img -", "", USUAL),
        ("nbd0 nbd+unix:///?socket=/s -", "", USUAL),
    ],
)
def test_only_an_absolute_path_without_an_export_may_be_an_image(line: str, image: str, options: ImageOptions) -> None:
    found = entry(line)
    assert (found.image, found.image_options) == (image, options)


def test_a_path_that_may_be_an_image_is_a_socket_as_well() -> None:
    """The file itself can tell, and it may come later."""
    assert entry("nbd0 /run/nbd.sock -").target == Target(socket="/run/nbd.sock", export="-")


def test_the_path_of_an_image_may_be_longer_than_that_of_a_socket() -> None:
    path = f"/{'ä' * 100}.img"  # in bytes: fewer characters than a socket's path may have bytes
    assert entry(f"nbd0 {path} -").image == path


def test_part_of_an_image_is_no_export_without_a_handshake() -> None:
    assert entry("nbd0 /vm/disk.img - offset=512,size=1024").options.raw_size == 1024


# -- mistakes ----------------------------------------------------------------------------------------------------------

LINE = "a line is DEVICE HOST EXPORT [OPTION,...]"
OPTIONS = "see nbdtab(5) for the options"
IN_URI = "if it is the export, write it in a URI: nbd://HOST/EXPORT"
NO_TIME = "is not a time from {} up: seconds, or a number with ms, s, m, h or d"
NO_BLOCK = "is not one of 512, 1024, 2048, 4096"
NO_COUNT = "is neither auto nor a number from 1 to 64"
NO_SIZE = "is not a size from {} up: bytes, or a number with K, M, G, T or P"
FORMS = "a TARGET is HOST, HOST:PORT, [V6ADDR]:PORT, /path/of/socket or nbd://HOST[:PORT]/EXPORT"
WITH_SCOPE = "write [fe80::1%eth0], with the name of the interface in place of eth0"
A_DEVICE = "a DEVICE is /dev/nbd0, nbd0, /dev/nbd1, ..."

# A line that follows two others, the column and text of its mistake, and the hint.
MALFORMED: list[tuple[str, int, str, str]] = [
    ("nbd2", 5, "no host", LINE),
    ("nbd2 ", 6, "no host", LINE),
    ("nbd2 # db1 disk", 16, "no host", LINE),
    ("nbd2 db1", 9, "no export", f"{LINE}; or name the export in a URI: nbd://HOST/EXPORT"),
    ("nbd2 db1 disk swap persist", 20, "a fifth field", f"{LINE}; no blanks between options"),
    ("nbd2 db1 disk bs=512, conns=2", 23, "a fifth field", f"{LINE}; no blanks between options"),
    ("sda db1 disk", 1, "'sda': not an nbd device", A_DEVICE),
    ("  /dev/sda db1 disk", 3, "'/dev/sda': not an nbd device", A_DEVICE),
    ("nbd00 db1 disk", 1, "'nbd00': not an nbd device", A_DEVICE),
    ("nbd db1 disk", 1, "'nbd': not an nbd device", A_DEVICE),
    ("nbd2p1 db1 disk", 1, "'nbd2p1': a partition, not a whole device", "name the device: nbd2"),
    ("db1 disk nbd2", 1, "'db1': not an nbd device", A_DEVICE),
    ("nbd0 db1 disk", 1, "nbd0 is in line 1 already", "leave out one"),
    ("/dev/nbd1 db1 disk", 1, "nbd1 is in line 2 already", "leave out one"),
    ("nbd2 db_? disk", 6, "'db_?': not a host name", FORMS),
    ("nbd2 db1:x disk", 6, "'db1:x': not a port: 'x'", "a port is a number from 1 to 65535; or write nbd://db1/x"),
    (
        "nbd2 db1/disk swap",
        6,
        "'db1/disk': neither a host nor the absolute path of a socket",
        "write nbd://db1/disk",
    ),
    ("nbd2 [::1 disk", 6, "'[::1': not an IPv6 address in brackets", "write [::1]"),
    ("nbd2 1:2:3 disk", 6, "'[1:2:3]': not an IPv6 address in brackets", "write [2001:db8::1]:10809"),
    ("nbd2 db1 disk port=0", 15, "not a port: '0'", "a port is a number from 1 to 65535"),
    ("nbd2 db1 disk port=65536", 15, "not a port: '65536'", "a port is a number from 1 to 65535"),
    ("nbd2 db1 disk port=nbd", 15, "not a port: 'nbd'", "a port is a number from 1 to 65535"),
    ("nbd2 db1 disk port", 15, "option port without a value", "write port=VALUE"),
    ("nbd2 db1:1 disk port=1", 17, "a second port: 'db1:1' has one already", "leave out one"),
    ("nbd2 [::1]:1 disk port=1", 19, "a second port: '[::1]:1' has one already", "leave out one"),
    ("nbd2 nbd://db1/disk - port=1", 23, "option port cannot be combined with a URI", "write it in the URI"),
    ("nbd2 nbd://db1/disk - unix", 23, "option unix cannot be combined with a URI", "write it in the URI"),
    ("nbd2 nbd://db1/disk swap", 21, "a second export: the URI names 'disk'", "write - instead"),
    ("nbd2 nbd://db1/disk - swap x", 28, "a fifth field", f"{LINE}; no blanks between options"),
    ("nbd2 http://db1 disk", 6, "'http://db1': unknown scheme 'http'", "write nbd://db1"),
    (
        "nbd2 nbd://db1/disk?port=1",
        6,
        "'nbd://db1/disk?port=1': unknown parameter 'port'",
        "known parameters: socket, tls-certificates, tls-hostname, tls-psk-file",
    ),
    (
        "nbd2 nbd://db1/a%2",
        6,
        "'nbd://db1/a%2': a % that is not followed by two hexadecimal digits",
        "write nbd://db1/a%252",
    ),
    (
        "nbd2 unix:run/s disk",
        6,
        "'unix:run/s': neither a host nor the absolute path of a socket",
        "write the absolute path of the socket",
    ),
    ("nbd2 fe80::1 disk", 6, "'[fe80::1]': a link-local address without its interface", WITH_SCOPE),
    (
        "nbd2 nbd:db1:10809:exportname=disk -",
        6,
        "'nbd:db1:10809:exportname=disk': more than one colon",
        "write nbd://db1:10809/disk",
    ),
    (
        "nbd2 unix:/run/nbd.sock disk",
        6,
        "'unix:/run/nbd.sock': neither a host nor the absolute path of a socket",
        "write /run/nbd.sock",
    ),
    (
        "nbd2 nbds://db1?tls-ca=/ca -",
        6,
        "'nbds://db1?tls-ca=/ca': unknown parameter 'tls-ca'",
        "use the option tls-ca FILE",
    ),
    ("nbd2 nbd+unix:///disk?socket=run/s", 23, "parameter socket: not an absolute path", "it begins with /"),
    (
        "nbd2 nbds://db1/disk?tls-hostname=a&tls-certificates=pki",
        37,
        "parameter tls-certificates: not an absolute path",
        "it begins with /",
    ),
    ("nbd2 run/nbd.sock disk unix", 6, "'run/nbd.sock' is not the absolute path of a socket", "it begins with /"),
    ("nbd2 /run/nbd.sock disk unix,port=1", 30, "a Unix socket has no port", "leave it out"),
    (f"nbd2 /{'x' * 107} disk", 6, f"'/{'x' * 107}': the socket's path is longer than 107 bytes", "use a shorter one"),
    (f"nbd2 db1 {'x' * 4097}", 10, "the export name is longer than 4096 bytes", "no NBD server accepts a longer one"),
    ("nbd2 db1 swap,persist", 10, "'swap,persist' looks like options, but this field is the export", IN_URI),
    ("nbd2 db1 bs=4096", 10, "'bs=4096' looks like options, but this field is the export", IN_URI),
    ("nbd2 db1 dis\x01k", 13, r"an invisible character: '\x01'", "write %XX in a URI"),
    ("nbd2 db1 di\x0bsk", 12, r"an invisible character: '\x0b'", "write %XX in a URI"),
    ("nbd2 db1\u00a0disk", 9, r"an invisible character: '\xa0'", "write %XX in a URI"),
    ("\ufeffnbd2 db1 disk", 1, r"an invisible character: '\ufeff'", "write %XX in a URI"),
    ("nbd2 db1 disk swap,\x1b[2J", 20, r"an invisible character: '\x1b'", "write %XX in a URI"),
    (
        "nbd2 db1 disk read-only,read-write",
        1,
        "read-write: cannot be combined with read-only",
        "leave one of them out",
    ),
    ("nbd2 db1 disk frob", 15, "unknown option 'frob'", f"{OPTIONS}; _NAME is ignored"),
    ("nbd2 db1 disk swap,Persist", 20, "unknown option 'Persist'", f"did you mean persist? {OPTIONS}"),
    ("nbd2 db1 disk readonly", 15, "unknown option 'readonly'", f"did you mean read-only? {OPTIONS}"),
    ("nbd2 db1 disk ro", 15, "unknown option 'ro'", f"did you mean read-only? {OPTIONS}"),
    ("nbd2 db1 disk fork", 15, "unknown option 'fork'", f"{OPTIONS}; _NAME is ignored"),
    ("nbd2 db1 disk foreground", 15, "unknown option 'foreground'", f"{OPTIONS}; _NAME is ignored"),
    ("nbd2 db1 disk -swap", 15, "unknown option '-swap'", f"did you mean swap? {OPTIONS}"),
    ("nbd2 db1 disk export=x", 15, "the export is not an option", "it is the third field"),
    ("nbd2 db1 disk sdp", 15, "the Socket Direct Protocol is not supported", "leave it out for TCP"),
    ("nbd2 db1 disk swap,,tls", 20, "an option without a name", "separate options by one comma"),
    ("nbd2 db1 disk swap,", 20, "an option without a name", "separate options by one comma"),
    ("nbd2 db1 disk ,swap", 15, "an option without a name", "separate options by one comma"),
    ("nbd2 db1 disk =1", 15, "an option without a name", "separate options by one comma"),
    ("nbd2 db1 disk bs", 15, "option bs without a value", "write bs=VALUE"),
    ("nbd2 db1 disk bs=", 15, "option bs without a value", "write bs=VALUE"),
    ("nbd2 db1 disk swap=1", 15, "option swap takes no value", "write swap"),
    ("nbd2 db1 disk _a,persist=", 18, "option persist takes no value", "write persist"),
    ("nbd2 db1 disk bs=4096,bs=512", 23, "option bs is given twice", "leave out one"),
    ("nbd2 db1 disk swap,swap", 20, "option swap is given twice", "leave out one"),
    ("nbd2 db1 disk bs=512,block-size=512", 22, "option block-size means the same as bs at column 15", "leave out one"),
    (
        "nbd2 db1 disk persist,format=raw",
        23,
        "option format is for an image, whose line is DEVICE /PATH -",
        "leave it out for a server",
    ),
    (
        "nbd2 /s disk cache=none,snapshot",
        25,
        "option snapshot is for an image, whose line is DEVICE /PATH -",
        "leave it out for a server",
    ),
    (
        "nbd2 /s - unix,offset=0",
        16,
        "option offset is for an image, whose line is DEVICE /PATH -",
        "leave it out for a server",
    ),
    (
        "nbd2 db1 disk on-loss=fail,dead-timeout=3",
        28,
        "option dead-timeout means the same as on-loss at column 15",
        "leave out one",
    ),
    ("nbd2 db1 disk bs=1000", 15, f"option bs: '1000' {NO_BLOCK}", f"try bs=4096; {OPTIONS}"),
    ("nbd2 db1 disk bs=8k", 15, f"option bs: '8k' {NO_BLOCK}", f"try bs=4096; {OPTIONS}"),
    ("nbd2 db1 disk bs=-512", 15, f"option bs: '-512' {NO_BLOCK}", f"try bs=4096; {OPTIONS}"),
    ("nbd2 db1 disk bs=٤٠٩٦", 15, f"option bs: '٤٠٩٦' {NO_BLOCK}", f"try bs=4096; {OPTIONS}"),
    ("nbd2 db1 disk bs=4096#c", 15, f"option bs: '4096#c' {NO_BLOCK}", "write a blank before the # of a comment"),
    ("nbd2 db1 disk conns=0", 15, f"option conns: '0' {NO_COUNT}", f"try conns=auto; {OPTIONS}"),
    ("nbd2 db1 disk conns=65", 15, f"option conns: '65' {NO_COUNT}", f"try conns=auto; {OPTIONS}"),
    ("nbd2 db1 disk timeout=soon", 15, f"option timeout: 'soon' {NO_TIME.format(0)}", f"try timeout=30s; {OPTIONS}"),
    (
        "nbd2 db1 disk dead-timeout=5M",
        15,
        f"option dead-timeout: '5M' {NO_TIME.format(0)}",
        f"try dead-timeout=5m; {OPTIONS}",
    ),
    ("nbd2 db1 disk dead-peer=0", 15, f"option dead-peer: '0' {NO_TIME.format(1)}", f"try dead-peer=30s; {OPTIONS}"),
    (
        "nbd2 db1 disk connect-timeout=0",
        15,
        f"option connect-timeout: '0' {NO_TIME.format(0.001)}",
        f"try connect-timeout=30s; {OPTIONS}",
    ),
    (
        "nbd2 db1 disk retry-for=31536001",
        15,
        "option retry-for: '31536001' is more than a year",
        f"try retry-for=365d; {OPTIONS}",
    ),
    (
        "nbd2 db1 disk on-loss=maybe",
        15,
        "option on-loss: 'maybe' is not one of wait, wait:TIME, fail",
        f"try on-loss=wait:5m; {OPTIONS}",
    ),
    (
        "nbd2 db1 disk backend=magic",
        15,
        "option backend: 'magic' is not one of auto, netlink, ioctl",
        f"try backend=auto; {OPTIONS}",
    ),
    (
        "nbd2 db1 disk tls-transport=air",
        15,
        "option tls-transport: 'air' is not one of auto, kernel, relay",
        f"try tls-transport=auto; {OPTIONS}",
    ),
    (
        "nbd2 db1 disk expect-size=1E",
        15,
        f"option expect-size: '1E' {NO_SIZE.format(0)}",
        f"try expect-size=1G; {OPTIONS}",
    ),
    ("nbd2 db1 disk preinit", 15, "option preinit needs size=SIZE", "the server does not announce the size then"),
    ("nbd2 db1 disk size=512", 15, "option size needs no-handshake", "otherwise the server announces the size"),
    ("nbd2 db1 disk preinit,size=0", 23, f"option size: '0' {NO_SIZE.format(1)}", f"try size=1G; {OPTIONS}"),
    ("nbd2 db1 disk tls-ca=ca.pem", 15, "option tls-ca: 'ca.pem' is not an absolute path", OPTIONS),
    ("nbd2 db1 disk tls,keyfile=/k", 19, "tls-key: a key without its certificate", "give tls-cert FILE, too"),
    (
        "nbd2 db1 disk tls-ca=/a,tls-psk=/p",
        25,
        "tls-psk: a pre-shared key cannot be combined with certificates",
        "give one or the other",
    ),
    (f"nbd2 db1 disk swap,tag={'x' * 256}", 20, "tag: longer than 255 bytes", "use a shorter name"),
    (
        "nbd2 db1 disk swap,tag=\udcff",
        20,
        r"tag: '\udcff' contains unprintable characters, or blanks at its ends",
        "use letters and digits",
    ),
    ("nbd2 db1 disk tag=t", 15, "the tag 't' is in line 2 already", "leave out one"),
]
FIRST_TWO = "nbd0 db1 disk\nnbd1 db1 disk tag=t\n"


def test_there_are_fifty() -> None:
    assert len({line for line, *_ in MALFORMED}) >= 50


@pytest.mark.parametrize(("line", "column", "cause", "hint"), MALFORMED)
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\nnbd3 db1 disk\n"], ids=["", "newline", "crlf", "more"])
def test_mistake_has_its_line_and_column(line: str, column: int, cause: str, hint: str, end: str) -> None:
    found = parse(FIRST_TWO + line + end, "/etc/nbdtab")
    (mistake,) = found.mistakes
    assert str(mistake.error) == f"/etc/nbdtab:3:{column}: {cause}"
    assert mistake.error.hint == hint
    assert mistake.error.exit_code == 2
    assert str(mistake.error).isprintable()
    assert 3 not in [entry.line for entry in found.entries]


def test_all_mistakes_of_all_lines_are_told() -> None:
    text = "nbd0 db_? disk frob,bs=1,tag=\udcff\nnbd1 db1 disk\nnbd2\n\nnbd1 db1 x unix=1\n"
    assert mistakes(text) == [
        "nbdtab:1:16: unknown option 'frob'",
        "nbdtab:1:21: option bs: '1' is not one of 512, 1024, 2048, 4096",
        "nbdtab:1:6: 'db_?': not a host name",
        r"nbdtab:1:26: tag: '\udcff' contains unprintable characters, or blanks at its ends",
        "nbdtab:3:5: no host",
        "nbdtab:5:1: nbd1 is in line 2 already",
    ]


def test_a_device_with_two_lines_has_none() -> None:
    """Which one is meant cannot be known."""
    found = parse("nbd0 db1 disk\nnbd1 db1 disk\nnbd0 db1 other\n", "nbdtab")
    assert [entry.device for entry in found.entries] == [Device(1)]
    assert [mistake.device for mistake in found.mistakes] == [Device(0)]


def test_of_many_lines_with_one_tag_the_first_is_used() -> None:
    """Commands for one tag wait for each other, so hundreds of them would keep `up --all` busy for minutes."""
    found = parse("".join(f"nbd{number} db{number} disk bs=512,tag=t\n" for number in range(300)), "nbdtab")
    assert [entry.device for entry in found.entries] == [Device(0)]
    assert [str(mistake.error) for mistake in found.mistakes] == [
        f"nbdtab:{number + 1}:{len(f'nbd{number} db{number} disk bs=512,') + 1}: the tag 't' is in line 1 already"
        for number in range(1, 300)
    ]


def test_lines_without_a_tag_may_have_one_export() -> None:
    """Each device has its own attachment: `shared`, or read-only."""
    found = parse("nbd0 db1 disk shared\nnbd1 db1 disk shared\nnbd2 db1 disk read-only\n", "nbdtab")
    assert (len(found.entries), found.mistakes) == (3, ())


def test_file_name_cannot_write_on_the_terminal() -> None:
    (mistake,) = parse("x", "\x1b[2J\n").mistakes
    assert str(mistake.error) == r"\x1b[2J\n:1:1: 'x': not an nbd device"


# -- the same as connect -----------------------------------------------------------------------------------------------

NOT_IN_A_TABLE = {"export", "foreground", "json", "debug"}
# Values of each option that has one, valid ones and invalid ones.
VALUES = {
    "block-size": ["512", "4096"],
    "connections": ["auto", "1", "64", "0", "65", "", "x"],
    "connect-timeout": ["0.001", "5", "0", "-1", "1e3"],
    "retry-for": ["0", "0.5", "31536000", "31536001", "nan"],
    "backend": ["auto", "netlink", "ioctl", "Netlink"],
    "on-loss": ["wait", "wait:0", "wait:5.5", "fail", "wait:", "fail:5", "5"],
    "dead-peer": ["1", "30", "0.9"],
    "io-timeout": ["0", "90", "-1"],
    "scheduler": ["none", "mq-deadline", "bfq", "BFQ", "", "a b", "x" * 16],
    "read-ahead": ["0", "131072", "1073741824", "1073741825", "-1"],
    "tls-ca": ["/a"],
    "tls-cert": ["/c"],
    "tls-hostname": ["db"],
    "tls-psk": ["/p"],
    "tls-transport": ["auto", "kernel", "relay", "tls"],
    "also": ["db3", "nbd://db3:9/disk", "nbd://db3/other", "nbd://db1/disk", "nbds://db3/disk", "/s", "nbd://:1:"],
    "tag": ["t", "a" * 255, "a" * 256, "a=b", "\u3000"],
    "expect-size": ["0", "1048576", "-1", "1k"],
}
OPTIONS_WITH_VALUES = [(name, value) for name, values in VALUES.items() for value in values]
PAIRS = [("also=db3,also=/s", ["--also", "db3", "--also", "/s"]),
         ("tls-ca=/a,also=db3,also=nbds://db4/disk", ["--tls-ca=/a", "--also=db3", "--also=nbds://db4/disk"]),
         ("tls-cert=/c,tls-key=/k", ["--tls-cert", "/c", "--tls-key", "/k"]),
         ("no-handshake,size=512", ["--no-handshake", "--size", "512"])]  # fmt: skip
FLAGS = ["read-only", "read-write", "shared", "tls", "tls-no-verify", "swap", "no-reconnect"]
# Of images only.
IMAGE_VALUES: dict[str, list[str | None]] = {
    "format": ["raw", "qcow2", "vpc", "cloop", "luks", "RAW", ""],
    "cache": ["writeback", "writethrough", "none", "directsync", "unsafe", "auto"],
    "discard": ["unmap", "ignore", "on"],
    "offset": ["0", "1048576", "-1", "1M"],
    "size": ["1", "512", "0"],
    "read-only": [None],
    "snapshot": [None, "yes"],
}
IMAGE_OPTIONS = [(name, value) for name, values in IMAGE_VALUES.items() for value in values]


def long_names() -> set[str]:
    connect = main.cli.commands["connect"]
    return {name[2:] for option in connect.params for name in option.opts if name.startswith("--")} - NOT_IN_A_TABLE


def connected(monkeypatch: pytest.MonkeyPatch, options: list[str]) -> tuple[Target, ConnectOptions] | None:
    """The result of connect with these options; None if it refuses them."""
    asked: list[tuple[Target, ConnectOptions]] = []

    def attach(target: Target, _device: Device | None, found: ConnectOptions, _trace: object) -> None:
        asked.append((target, found))
        raise KernelRefused("it", "no", "try")

    monkeypatch.setattr(attachment, "attach", attach)
    code = main.run(["connect", *options, "-N", "disk", "db1", "nbd0"])
    assert code == (6 if asked else 2)
    return asked[0] if asked else None


def in_table(options: str) -> tuple[Target, ConnectOptions] | None:
    entries = parse(f"nbd0 db1 disk {options}", "nbdtab").entries
    return (entries[0].target, entries[0].options) if entries else None


def test_every_option_of_connect_is_tried_here() -> None:
    assert {*VALUES, *FLAGS, *IMAGE_VALUES, "tls-key", "no-handshake"} == long_names()


@pytest.mark.parametrize(("name", "value"), OPTIONS_WITH_VALUES)
def test_option_with_a_value_means_what_connect_means(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    assert in_table(f"{name}={value}") == connected(monkeypatch, [f"--{name}={value}"])


@pytest.mark.parametrize(
    ("options", "arguments"), [*PAIRS, *((flag, [f"--{flag}"]) for flag in FLAGS)], ids=lambda one: str(one)
)
def test_options_mean_what_connect_means(monkeypatch: pytest.MonkeyPatch, options: str, arguments: list[str]) -> None:
    found = in_table(options)
    assert found is not None
    assert found == connected(monkeypatch, arguments)


OfImage = tuple[Source, ConnectOptions, ImageOptions]


def connected_to_image(monkeypatch: pytest.MonkeyPatch, image: Path, option: str) -> OfImage | None:
    """The result of connect with this option; None if it refuses it."""
    asked: list[OfImage] = []

    def attach(source: Source, _device: object, options: ConnectOptions, found: ImageOptions, _: object) -> None:
        asked.append((source, options, found))
        raise KernelRefused("it", "no", "try")

    monkeypatch.setattr(serving, "attach", attach)
    code = main.run(["connect", option, str(image), "nbd0"])
    assert code == (6 if asked else 2)
    return asked[0] if asked else None


def image_in_table(image: Path, option: str) -> OfImage | None:
    for found in parse(f"nbd0 {image} - {option}", "nbdtab").entries:
        source = source_of(found.image)
        assert source is not None
        return source, found.options, found.image_options
    return None


@pytest.mark.parametrize(("name", "value"), IMAGE_OPTIONS)
def test_option_of_an_image_means_what_connect_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    option = name if value is None else f"{name}={value}"
    assert image_in_table(image, option) == connected_to_image(monkeypatch, image, f"--{option}")


# -- any text ----------------------------------------------------------------------------------------------------------

WORDS = """
nbd0 nbd1 /dev/nbd1 nbd99999999 db1 db1:1 ::1 [::1] /s nbd://db1/d nbds://h nbd+unix:///?socket=/s disk - # = , _x é
bs=512 bs= conns=2 port=1 port unix tls tag=t tag=u timeout=1 dead-timeout=5 on-loss=wait persist preinit size=512 %zz
tls-key=/k tls-psk=/p tls-ca=/a
"""
PIECES = st.sampled_from([*WORDS.split(), "\t", "\r", "\n", "\r\n", "\x00", "\udcff"])
TEXTS = st.one_of(
    st.text(st.characters()),
    st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=40).map(" ".join),
    st.lists(st.lists(PIECES, min_size=2, max_size=5).map(" ".join), max_size=8).map("\n".join),
    st.lists(PIECES, min_size=1, max_size=8).map(lambda pieces: "nbd0 db1 disk " + ",".join(pieces)),
)


@given(TEXTS)
def test_whatever_the_text_mistakes_have_a_place_in_it(text: str) -> None:
    found: Table = parse(text, "nbdtab")
    lines = text.split("\n")
    for mistake in found.mistakes:
        name, line, column, _ = str(mistake.error).split(":", 3)
        assert (name, line) == ("nbdtab", str(mistake.line))
        assert 1 <= int(column) <= len(lines[mistake.line - 1]) + 1
        assert str(mistake.error).isprintable()
    for one in found.entries:
        assert one.device not in {mistake.device for mistake in found.mistakes}
        assert lines[one.line - 1].split()[0].removeprefix("/dev/") == one.device.name
    assert len({one.device for one in found.entries}) == len(found.entries)


@given(TEXTS, TEXTS)
def test_lines_stand_for_themselves(above: str, below: str) -> None:
    """But for their number, and for devices and tags that are taken."""
    line = "nbd7 db1 disk port=2000,tag=own"
    (found,) = [one for one in parse(f"{above}\n{line}\n{below}", "nbdtab").entries if one.device == Device(7)]
    assert (found.target, found.options) == (entry(line).target, entry(line).options)


# -- the file ----------------------------------------------------------------------------------------------------------


def refused(path: Path) -> Malformed:
    with pytest.raises(Malformed) as caught:
        table.read(str(path))
    return caught.value


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    error = refused(tmp_path / "nbdtab")
    assert str(error) == f"{tmp_path}/nbdtab: there is no such table"
    assert error.hint == "nbdtab(5) describes its format; --table FILE names another one"
    assert str(refused(tmp_path)) == f"{tmp_path}: cannot be read: Is a directory"


def test_a_file_of_any_size_takes_no_more_memory_than_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "nbdtab"
    with file.open("wb") as large:
        large.truncate(1 << 40)
    assert str(refused(file)) == f"{file}: more than 1048576 bytes"


def test_bytes_that_are_no_text_are_an_export_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "nbdtab"
    file.write_bytes(b"nbd0 db1 d\xff\xc3\xa4\n")
    (found,) = table.read(str(file)).entries
    assert found.target.uri == "nbd://db1/d%FF%C3%A4"


def test_what_comes_from_a_file_is_marked_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nbdtab").write_text("nbd0 db1 disk\n")
    monkeypatch.chdir(tmp_path)
    (found,) = table.read("nbdtab").entries
    assert found.options == ConnectOptions(table=f"{tmp_path}/nbdtab")


def test_only_the_lines_of_a_device_count_for_it() -> None:
    found = parse("nbd0 db1 disk\nfrob\nnbd1 db1 disk frob\n", "nbdtab")
    assert table.entry_of(found, Device(0), "nbdtab").target == LOCAL
    for device, said in (
        (1, "nbdtab:3:15: unknown option 'frob'"),
        (2, "/dev/nbd2: no line for it in nbdtab"),
    ):
        with pytest.raises(Malformed) as caught:
            table.entry_of(found, Device(device), "nbdtab")
        assert str(caught.value) == said
