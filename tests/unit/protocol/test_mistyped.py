# SPDX-License-Identifier: GPL-2.0-or-later
"""Mistyped targets, in the manner of other programs or of none: each hint that says what to write works as typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nbdattach.errors import Malformed
from nbdattach.own_server.source import collapsed, source_of
from nbdattach.protocol.target import Target, parse_target

FORMS = "a TARGET is HOST, HOST:PORT, [V6ADDR]:PORT, /path/of/socket or nbd://HOST[:PORT]/EXPORT"
MISTYPED: list[tuple[str, str]] = [
    ("::1", "write [::1]"),
    ("::1:10809", "write [::1]:10809"),
    ("::1:1080", "write [::1:1080], or [::1]:1080"),
    ("2001:db8::1", "write [2001:db8::1]"),
    ("2001:db8::1:10809", "write [2001:db8::1]:10809"),
    ("nbd://::1", "write nbd://[::1]"),
    ("nbd://::1/disk", "write nbd://[::1]/disk"),
    ("nbd://::1:10809/disk", "write nbd://[::1]:10809/disk"),
    ("nbd://2001:db8::1:10809/disk", "write nbd://[2001:db8::1]:10809/disk"),
    ("fe80::1", "write [fe80::1%eth0], with the name of the interface in place of eth0"),
    ("[fe80::1]", "write [fe80::1%eth0], with the name of the interface in place of eth0"),
    ("[fe80::1]:10809", "write [fe80::1%eth0]:10809, with the name of the interface in place of eth0"),
    ("nbd://[fe80::1]/disk", "write nbd://[fe80::1%25eth0]/disk, with the name of the interface in place of eth0"),
    ("nbd://[fe80::1%eth0]/disk", "write nbd://[fe80::1%25eth0]/disk"),
    ("nbd://[fe80::1%eth0]:10809/disk", "write nbd://[fe80::1%25eth0]:10809/disk"),
    ("nbd://fe80::1%eth0/disk", "write nbd://[fe80::1%25eth0]/disk"),
    ("nbd://[fe80::1%ca0]/disk", "write nbd://[fe80::1%25ca0]/disk"),
    ("fe80::1%eth0", "write [fe80::1%eth0]"),
    ("fe80::1%eth0:10809", "write [fe80::1%eth0]:10809"),
    ("[::1", "write [::1]"),
    ("[::1]disk", "write nbd://[::1]/disk"),
    ("[::1]/disk", "write nbd://[::1]/disk"),
    ("[::1]:10809/disk", "write nbd://[::1]:10809/disk"),
    ("::1/disk", "write nbd://[::1]/disk"),
    ("unix:/run/x", "write /run/x"),
    ("unix:run/x", "write nbd+unix:///?socket=run/x"),
    ("unix:///run/x", "write /run/x"),
    ("unix://run/x", "write /run/x"),
    ("nbd:/host", "write nbd://host"),
    ("nbd:host", "write nbd://host"),
    ("nbd:host/disk", "write nbd://host/disk"),
    ("nbd:///disk", "write nbd://HOST/disk"),
    ("nbd:///host/disk", "write nbd://host/disk"),
    ("nbd://", FORMS),
    ("nbd:localhost:10809", "write nbd://localhost:10809"),
    ("nbd:localhost:10809:exportname=disk", "write nbd://localhost:10809/disk"),
    ("nbd:localhost:10809/disk", "write nbd://localhost:10809/disk"),
    ("nbd:[::1]:10809:exportname=disk", "write nbd://[::1]:10809/disk"),
    ("nbd:unix:/run/x", "write /run/x"),
    ("nbd:unix:/run/x:exportname=disk", "write nbd+unix:///disk?socket=/run/x"),
    ("nbd:unix:sock:exportname=disk", "write nbd+unix:///disk?socket=sock"),
    ("./nosock", "is the path correct?"),
    ("run/x.sock", "is the path correct? an export of a server is nbd://run/x.sock"),
    ("nbd+unix://sock", "write nbd+unix:///?socket=/sock"),
    ("nbd+unix:/run/x", "write nbd+unix:///?socket=/run/x"),
    ("nbd+unix:///run/x", "write nbd+unix:///?socket=/run/x"),
    ("nbd+unix://run/x", "write nbd+unix:///?socket=/run/x"),
    ("nbd+unix:///disk", "write nbd+unix:///disk?socket=/PATH"),
    ("nbds+unix:///run/x", "write nbds+unix:///?socket=/run/x"),
    ("nbd://host?socket=/run/x", "write nbd+unix:///?socket=/run/x"),
    ("nbd://host/disk?socket=/run/x", "write nbd+unix:///disk?socket=/run/x"),
    ("nbd:///disk?socket=/run/x", "write nbd+unix:///disk?socket=/run/x"),
    ("nbd://user@host/disk", "write nbd://host/disk"),
    ("nbd://user:pw@host:10809/disk", "write nbd://host:10809/disk"),
    ("nbd://host:disk", "a port is a number from 1 to 65535; or write nbd://host/disk"),
    ("nbd://host:port/disk", "a port is a number from 1 to 65535; or write nbd://host/disk"),
    ("nbd://host:/disk", "a port is a number from 1 to 65535; or write nbd://host/disk"),
    ("host:/disk", "write nbd://host/disk"),
    ("host/disk", "is the path correct? an export of a server is nbd://host/disk"),
    ("host:10809/disk", "write nbd://host:10809/disk"),
    ("host:10809:disk", "write nbd://host:10809/disk"),
    ("host:disk", "a port is a number from 1 to 65535; or write nbd://host/disk"),
    ("host:0", "a port is a number from 1 to 65535"),
    ("host:99999", "a port is a number from 1 to 65535"),
    ("host 10809", "write host:10809"),
    ("nbd//host/disk", "write nbd://host/disk"),
    ("nbd:://host/disk", "write nbd://host/disk"),
    ("nbd;//host", "write nbd://host"),
    ("nbd:\\\\host", "write nbd://host"),
    ("ndb://host/disk", "write nbd://host/disk"),
    ("http://host/disk.img", "for a file there: [ nbdkit curl http://host/disk.img ]; an NBD server is nbd://HOST"),
    ("https://host/disk", "for a file there: [ nbdkit curl https://host/disk ]; an NBD server is nbd://HOST"),
    ("ssh://host/disk", "for a file there: [ nbdkit ssh ssh://host/disk ]; an NBD server is nbd://HOST"),
    ("tcp://host:10809/disk", "write nbd://host:10809/disk"),
    ("tcp:host:10809", "write nbd://host:10809"),
    ("nbd+tcp://host/disk", "write nbd://host/disk"),
    ("nbd+tls://host/disk", "write nbds://host/disk"),
    ("nbd+ssh://host/disk", "one of: nbd, nbds, nbd+unix, nbds+unix"),
    ("nbd+vsock://2/disk", FORMS),
    (" nbds://host/disk", "write nbds://host/disk"),
    ("1nbds://host/disk", "one of: nbd, nbds, nbd+unix, nbds+unix"),
    ("nbd:[::1]:10810disk", FORMS),
    ("nb@ds://host/disk", "one of: nbd, nbds, nbd+unix, nbds+unix"),
    ("qemu:nbd://host", "one of: nbd, nbds, nbd+unix, nbds+unix"),
    ("nbd://host/my disk", "write nbd://host/my%20disk"),
    ("nbd://host/disk#1", "write nbd://host/disk%231"),
    ("nbd://host/100%", "write nbd://host/100%25"),
    ("nbd://host/disk?tls-hostname=x", "write nbds://host/disk?tls-hostname=x"),
    ("nbd://host/disk?export=x", "write nbd://host/x"),
    ("nbd://host/disk?tls=on", "write nbds://host/disk"),
    ("nbds://host/disk?tls-verify-peer=0", "use the option --tls-no-verify"),
    ("nbds://host/disk?tls-verify-peer=false", "use the option --tls-no-verify"),
    ("nbds://host/disk?tls-ca=/etc/ca.pem", "use the option --tls-ca FILE"),
    ("nbds://host/disk?tls-type=x509", "write nbds://host/disk"),
    ("nbd://host/dïsk", "write nbd://host/d%C3%AFsk"),
    ("-host", FORMS),
    ("host,disk", "write nbd://host/disk"),
    ("host disk", "write nbd://host/disk"),
    ("db1:10809,disk", "a port is a number from 1 to 65535; or write nbd://db1:10809/disk"),
    ("/dev/nbd0", "name a server or an image"),
    ("file:///srv/disk.img", "write /srv/disk.img"),
    ("file:///srv/my%20disk.img", "write '/srv/my disk.img'"),
    ("file://host/srv/disk.img", "write /srv/disk.img"),
    ("my host/disk", "is the path correct?"),
    ("./disk.qcow2", "is the path correct?"),
    ("localhost::10809", "write localhost:10809"),
    ("", FORMS),
    (":10809", "write localhost:10809"),
    ("10809", "write localhost:10809"),
    ("nbd://10809/disk", FORMS),
    ("@host", "write host"),
    ("nbd:db1", "write nbd://db1"),
    (
        'json:{"driver":"nbd"}',
        "a TARGET is HOST, HOST:PORT, [V6ADDR]:PORT, /path/of/socket or nbd://HOST[:PORT]/EXPORT",
    ),
    ("driver=nbd,host=h", FORMS),
]


def explained(text: str, export: str | None = None) -> str:
    """The hint."""
    with pytest.raises(Malformed) as caught:
        assert source_of(text, export) is None
        parse_target(text, export)
    return caught.value.hint


def understood(text: str) -> Target:
    """The target of what is typed in a shell."""
    (word,) = collapsed(shlex.split(text))
    source = source_of(word)
    return Target() if source else parse_target(word)


@pytest.fixture(autouse=True)
def _nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("text", "hint"), MISTYPED)
def test_a_mistyped_target_is_explained(text: str, hint: str) -> None:
    assert explained(text) == hint


@pytest.mark.parametrize("text", [text for text, hint in MISTYPED if "write " in hint and "file:" not in text])
def test_what_a_hint_says_to_write_can_be_typed(text: str) -> None:
    written = re.findall(r"(?:write |, or )(\S+?)(?=,|$)", explained(text))
    assert written
    for one in written:
        understood(one)


@pytest.mark.parametrize("text", ["[nbdkit memory 1G]", "[ nbdkit memory 1G]", "[nbdkit memory 1G ]"])
def test_a_command_without_a_blank_at_a_bracket_is_no_address(text: str) -> None:
    assert explained(text) == "write it as [ nbdkit memory 1G ]"


@pytest.mark.parametrize(
    "text", ["http://db1/disk.img", "ssh://db1/srv/disk.img", "https://db1/d?a=1&b=2", "http://d/" + "x" * 250]
)
def test_a_file_behind_another_protocol_has_a_server_in_brackets(text: str) -> None:
    command = explained(text).removeprefix("for a file there: ").partition(";")[0]
    source = source_of(collapsed(shlex.split(command))[0])
    assert source
    assert source.words[-1] == text


@pytest.mark.parametrize(
    ("text", "export", "hint"),
    [
        ("nbd://db1", "disk", "write nbd://db1/disk"),
        ("nbd://db1/", "a b", "write nbd://db1/a%20b"),
        ("nbd+unix:///?socket=/run/s", "disk", "write nbd+unix:///disk?socket=/run/s"),
        ("nbds://db1?tls-hostname=h", "disk", "write nbds://db1/disk?tls-hostname=h"),
    ],
)
def test_an_export_is_written_into_the_uri(text: str, export: str, hint: str) -> None:
    assert explained(text, export) == hint
    assert understood(hint.removeprefix("write ")).export == export


def test_a_relative_socket_that_is_there_has_an_absolute_path(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("sock")
        assert explained("./sock") == f"write {tmp_path}/sock"
    assert parse_target("nbd+unix:///?socket=sock").socket == f"{tmp_path}/sock"


@pytest.mark.parametrize(
    "text", ["nbd:$(reboot)", "nbd://h/`x`:y%", "nbd:h:exportname=a;b", "unix:/a b", "unix:/a\x1b", "nbd:/" + "h" * 300]
)
def test_nothing_is_offered_that_a_shell_or_terminal_would_read_in_another_way(text: str) -> None:
    hint = explained(text)
    written = hint.removeprefix("write ") if "write " in hint else ""
    assert not set(" '\"\\`$&|;<>()*!{}\x1b") & set(written)


@pytest.mark.parametrize("text", ["nbd0", "vsock:2", "sock", "disk.qcow3"])
def test_a_name_without_a_slash_is_a_host(text: str) -> None:
    assert parse_target(text).host == text.partition(":")[0]
