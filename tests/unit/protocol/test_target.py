# SPDX-License-Identifier: GPL-2.0-or-later
"""TARGET as users type it: every form of the contract, one canonical URI each, and errors that name the wrong part."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nbdattach.errors import Malformed
from nbdattach.protocol.target import Target, Trust, others, parse_target, target_of, with_tls

NO_HOST_NO_PATH = "neither a host nor the absolute path of a socket"
FORMS = "a TARGET is HOST, HOST:PORT, [V6ADDR]:PORT, /path/of/socket or nbd://HOST[:PORT]/EXPORT"


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("db1", Target("db1")),
        ("db1.example.org", Target("db1.example.org")),
        ("DB1.Example", Target("db1.example")),
        ("db_1.", Target("db_1.")),
        ("10.0.0.1", Target("10.0.0.1")),
        ("db1:10809", Target("db1")),
        ("db1:1", Target("db1", 1)),
        ("db1:65535", Target("db1", 65535)),
        ("[::1]", Target("::1")),
        ("[2001:db8::1]:99", Target("2001:db8::1", 99)),
        ("[fe80::1%eth0]:99", Target("fe80::1%eth0", 99)),
        ("/run/nbd.sock", Target(socket="/run/nbd.sock")),
        ("/run/../srv/./s", Target(socket="/srv/s")),
        ("/run/nbd?x#y%20", Target(socket="/run/nbd?x#y%20")),
    ],
)
def test_host_address_and_socket(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("nbd://db1", Target("db1")),
        ("nbd://db1/", Target("db1")),
        ("NBD://DB1/Disk", Target("db1", export="Disk")),
        ("nbd://db1:99/disk", Target("db1", 99, export="disk")),
        ("nbd://db1//disk", Target("db1", export="/disk")),
        ("nbd://db1/a/b/", Target("db1", export="a/b/")),
        ("nbd://db1/hello%20world", Target("db1", export="hello world")),
        ("nbd://db1/%c3%a9%25%3F%23", Target("db1", export="é%?#")),
        ("nbd://db1/%FF", Target("db1", export="\udcff")),
        ("nbd://db1/a+b", Target("db1", export="a+b")),
        ("nbd://db1/disk?", Target("db1", export="disk")),
        ("nbd://[::1]:99/disk", Target("::1", 99, export="disk")),
        ("nbd://[fe80::1%25eth0]/disk", Target("fe80::1%eth0", export="disk")),
        ("nbd://d%62%31/", Target("db1")),
        ("nbds://db1/disk", Target("db1", export="disk", tls=True)),
        ("nbds://db1?tls-hostname=db2", Target("db1", tls=True, tls_hostname="db2")),
        (
            "nbds://db1/x?tls-certificates=/etc/pki&tls-psk-file=/etc/psk",
            Target("db1", export="x", tls=True, tls_certificates="/etc/pki", tls_psk_file="/etc/psk"),
        ),
        ("nbd+unix:///?socket=/run/s", Target(socket="/run/s")),
        ("nbd+unix://?socket=/run/s", Target(socket="/run/s")),
        ("nbd+unix:///disk?socket=/run/a%20b%26", Target(socket="/run/a b&", export="disk")),
        ("nbd+unix:////disk?socket=/run/s", Target(socket="/run/s", export="/disk")),
        ("nbd+unix:///x?socket=%00/abstract", Target(socket="\0/abstract", export="x")),
        ("nbds+unix:///x?socket=/s&tls-hostname=db1", Target(socket="/s", export="x", tls=True, tls_hostname="db1")),
    ],
)
def test_uri(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("db1", "nbd://db1"),
        ("DB1:10809", "nbd://db1"),
        ("nbd://db1:10809/", "nbd://db1"),
        ("nbd://db1:99/a%20b%2fc", "nbd://db1:99/a%20b/c"),
        ("[::1]:99", "nbd://[::1]:99"),
        ("/run/nbd.sock", "nbd+unix:///?socket=/run/nbd.sock"),
        ("nbds+unix:///d?socket=%00x", "nbds+unix:///d?socket=%00x"),
        ("nbds://db1/d?tls-psk-file=/p&tls-hostname=h", "nbds://db1/d?tls-hostname=h&tls-psk-file=/p"),
    ],
)
def test_canonical_uri(text: str, uri: str) -> None:
    assert parse_target(text).uri == uri


def test_uri_of_the_server_is_without_the_export() -> None:
    assert parse_target("nbds://db1:99/disk?tls-hostname=h").server == "nbds://db1:99?tls-hostname=h"
    assert parse_target("/run/s", "disk").server == "nbd+unix:///?socket=/run/s"


@pytest.mark.parametrize(
    ("one", "other"), [("[FE80::1%eth0]", "[fe80::1%eth0]"), ("nbd://[2001:DB8::A]/x", "nbd://[2001:db8::a]/x")]
)
def test_case_of_an_address_makes_no_other_target(one: str, other: str) -> None:
    assert parse_target(one).uri == parse_target(other).uri


@pytest.mark.parametrize(
    "text", ["[::1]", "[::0:1]", "[0:0:0:0:0:0:0:1]", "[0000:0000::0001]", "[::0.0.0.1]", "nbd://[0::1]"]
)
def test_every_way_to_write_an_address_is_the_same_target(text: str) -> None:
    assert parse_target(text) == Target("::1")


def test_address_of_ipv4_in_ipv6_is_one_target_however_it_is_written() -> None:
    """Which of these is the canonical one depends on the version of Python."""
    texts = "[::ffff:10.0.0.1]", "[::FFFF:10.0.0.1]", "[::ffff:a00:1]", "[0:0:0:0:0:ffff:0A00:0001]"
    hosts = {parse_target(text).host for text in texts}
    assert len(hosts) == 1
    assert int(ipaddress.IPv6Address(hosts.pop())) == 0xFFFF << 32 | 0x0A000001


def test_export_option_names_the_export() -> None:
    assert parse_target("db1", "a/b c") == Target("db1", export="a/b c")
    assert parse_target("/run/s", "disk") == Target(socket="/run/s", export="disk")
    assert parse_target("[::1]", "") == Target("::1")


@pytest.mark.parametrize("name", ["disk", ""])
def test_export_option_with_a_uri_is_refused(name: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_target("nbd://db1/x", name)
    assert str(caught.value) == "'nbd://db1/x': -N/--export cannot be combined with a URI"
    assert caught.value.hint == ("write nbd://db1/disk" if name else "write the export in the URI")


def test_relative_socket_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_target("nbd+unix:///?socket=nbd.sock").socket == f"{tmp_path}/nbd.sock"


def test_relative_socket_in_a_directory_that_is_gone_is_malformed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(Malformed):
        parse_target("nbd+unix:///?socket=nbd.sock")


@pytest.mark.parametrize(
    ("text", "path"), [("/srv/a://b", "/srv/a:/b"), ("/a://b", "/a:/b"), ("/nbd://db1", "/nbd:/db1")]
)
def test_absolute_path_is_a_socket_whatever_is_in_it(text: str, path: str) -> None:
    assert parse_target(text) == Target(socket=path)
    assert parse_target(text, "disk") == Target(socket=path, export="disk")


def test_socket_path_that_is_no_utf8_has_a_uri() -> None:
    target = parse_target("/run/\udcff")
    assert target.uri == "nbd+unix:///?socket=/run/%FF"


@pytest.mark.parametrize("path", ["/" + "s" * 106, "\0" + "s" * 106])
def test_longest_socket_path_is_taken(path: str) -> None:
    uri = Target(socket=path).uri
    assert parse_target(uri) == Target(socket=path)


def test_longest_export_name_is_taken() -> None:
    assert parse_target("db1", "é" * 2048).export == "é" * 2048


LONG_NAME = "n" * 4097
MALFORMED: list[tuple[str, str, str]] = [
    ("", "no host in it", FORMS),
    ("nbd://", "no host in it", FORMS),
    ("nbd:///disk", "no host in it", "write nbd://HOST/disk"),
    (":10809", "not a host name: ''", "write localhost:10809"),
    ("-db1", "not a host name", FORMS),
    ("db 1", "not a host name", "write db:1"),
    ("db1/disk", NO_HOST_NO_PATH, "write nbd://db1/disk"),
    ("./nbd.sock", NO_HOST_NO_PATH, "the path of a socket begins with /"),
    ("dé", "not a host name", FORMS),
    ("nbd://d%C3%A9", "not a host name: 'dé'", FORMS),
    ("db1:", "not a port: ''", "a port is a number from 1 to 65535; or write db1"),
    ("db1:0", "not a port: '0'", "a port is a number from 1 to 65535"),
    ("db1:65536", "not a port: '65536'", "a port is a number from 1 to 65535"),
    ("db1:-1", "not a port: '-1'", "a port is a number from 1 to 65535"),
    ("db1:+1", "not a port: '+1'", "a port is a number from 1 to 65535"),
    ("db1:1_0", "not a port: '1_0'", "a port is a number from 1 to 65535"),
    ("db1:٣", "not a port: '٣'", "a port is a number from 1 to 65535"),
    ("db1:nbd", "not a port: 'nbd'", "a port is a number from 1 to 65535; or write nbd://db1/nbd"),
    ("[::1]:x", "not a port: 'x'", "a port is a number from 1 to 65535; or write nbd://[::1]/x"),
    ("nbd://db1:x/d", "not a port: 'x'", "a port is a number from 1 to 65535; or write nbd://db1/d"),
    ("::1", "more than one colon", "write [::1]"),
    ("2001:db8::1", "more than one colon", "write [2001:db8::1]"),
    ("db1:99:disk", "more than one colon", "write nbd://db1:99/disk"),
    ("[::1", "not an IPv6 address in brackets", "write [::1]"),
    ("[db1]", "not an IPv6 address in brackets", "write [2001:db8::1]:10809"),
    ("[10.0.0.1]", "not an IPv6 address in brackets", "write [2001:db8::1]:10809"),
    ("[::1]99", "not an IPv6 address in brackets", "write [::1]:99"),
    ("[]", "not an IPv6 address in brackets", "write [2001:db8::1]:10809"),
    ("[:]", "not an IPv6 address in brackets", "write [2001:db8::1]:10809"),
    ("[1:2]", "not an IPv6 address in brackets", "write [2001:db8::1]:10809"),
    ("[1::2::3]", "not an IPv6 address in brackets", "write [2001:db8::1]:10809"),
    ("[::12345]", "not an IPv6 address in brackets", "write [2001:db8::1]:10809"),
    ("nbd://db1/d#x", "a URI with a fragment", "write nbd://db1/d%23x"),
    ("nbd://db1/a b", "a URI can contain only printable ASCII characters", "write nbd://db1/a%20b"),
    ("nbd://db1/é", "a URI can contain only printable ASCII characters", "write nbd://db1/%C3%A9"),
    ("http://db1/", "unknown scheme 'http'", "write nbd://db1"),
    ("://db1/", "unknown scheme ''", "one of: nbd, nbds, nbd+unix, nbds+unix"),
    (
        "nbd+vsock://2/disk",
        "the kernel's nbd driver supports only TCP and Unix stream sockets, not vsock",
        FORMS,
    ),
    (
        "NBDS+VSOCK://2",
        "the kernel's nbd driver supports only TCP and Unix stream sockets, not vsock",
        FORMS,
    ),
    (
        "nbds://db1?tls-type=x509",
        "unknown parameter 'tls-type'",
        "write nbds://db1",
    ),
    (
        "nbd://db1?&",
        "unknown parameter ''",
        "write nbd://db1",
    ),
    ("nbds://db1?tls-hostname=a&tls-hostname=b", "parameter tls-hostname is given twice", "give it once"),
    ("nbd+unix:///?socket=", "parameter socket is empty", "write nbd+unix:///?socket=/PATH"),
    ("nbd+unix:///?socket", "parameter socket is empty", "write nbd+unix:///?socket=/PATH"),
    ("nbd+unix:///disk", "no socket parameter", "write nbd+unix:///disk?socket=/PATH"),
    (
        "nbd+unix://db1/disk?socket=/s",
        "nbd+unix:// takes no host",
        "write nbd+unix:///disk?socket=/s",
    ),
    ("nbd://db1/d?socket=/s", "a socket parameter on nbd://", "write nbd+unix:///d?socket=/s"),
    ("nbd://db1?tls-hostname=h", "TLS parameters on nbd://", "write nbds://db1?tls-hostname=h"),
    ("nbd+unix:///?socket=/s&tls-psk-file=/p", "TLS parameters on nbd+unix://", "write nbds+unix://"),
    ("nbd://me@db1/", "user names in a URI are not supported", "write nbd://db1"),
    ("nbd://db1/100%", "a % that is not followed by two hexadecimal digits", "write nbd://db1/100%25"),
    ("nbd://db1/%g0", "a % that is not followed by two hexadecimal digits", "write nbd://db1/%25g0"),
    (
        "nbd+unix:///?socket=/%2",
        "a % that is not followed by two hexadecimal digits",
        "write nbd+unix:///?socket=/%252",
    ),
    ("nbd://db1/a%00b", "an export name cannot contain NUL", "leave out %00"),
    ("nbds://db1?tls-hostname=a%00b", "parameter tls-hostname contains NUL", "leave out %00"),
    ("nbds://db1?tls-hostname=%00", "parameter tls-hostname contains NUL", "leave out %00"),
    ("nbds://db1?tls-certificates=/a%00", "parameter tls-certificates contains NUL", "leave out %00"),
    ("nbds+unix:///?socket=/s&tls-psk-file=%00/p", "parameter tls-psk-file contains NUL", "leave out %00"),
    ("nbd+unix:///?socket=%00", "not a socket path", "write /run/nbd.sock, or %00NAME in a URI for an abstract one"),
    ("nbd+unix:///?socket=/a%00b", "not a socket path", "write /run/nbd.sock, or %00NAME in a URI for an abstract one"),
    (
        "/" + "s" * 107,
        "the socket's path is longer than 107 bytes",
        "use a shorter one",
    ),
]


@pytest.mark.parametrize(("text", "cause", "hint"), MALFORMED)
def test_malformed_target_names_the_wrong_part(text: str, cause: str, hint: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_target(text)
    assert str(caught.value) == f"'{text}': {cause}"
    assert caught.value.hint == hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "cause"),
    [("a\0b", "an export name cannot contain NUL"), (LONG_NAME, "the export name is longer than 4096 bytes")],
)
def test_impossible_export_name_is_malformed(name: str, cause: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_target("db1", name)
    assert str(caught.value) == f"'db1': {cause}"


def test_malformed_target_cannot_write_on_the_terminal() -> None:
    with pytest.raises(Malformed) as caught:
        parse_target("db\x1b[2J\n'1")
    assert str(caught.value) == r"'db\x1b[2J\n\'1': not a host name"


# -- by chance -----------------------------------------------------------------------------------------------------

# The possible input by argv or a percent escape: any bytes.
wire_text = st.binary(max_size=60).filter(lambda data: b"\0" not in data).map(os.fsdecode)
hosts = st.one_of(
    st.from_regex(r"[a-z0-9_]([a-z0-9._-]{0,20}[a-z0-9_])?", fullmatch=True).filter(lambda host: not host.isdigit()),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).filter(lambda address: not address.is_link_local).map(str),
    st.builds("fe80::1%{}".format, st.from_regex(r"[a-z0-9_.-]{1,8}", fullmatch=True)),
)
paths = st.one_of(wire_text.map(lambda text: "/" + text.strip("./")), wire_text.map(lambda text: "\0x" + text))
sockets = paths.filter(lambda path: len(os.fsencode(path)) < 108 and (path[0] == "\0" or os.path.abspath(path) == path))
secrets: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"tls": st.just(True)},
    optional={"tls_hostname": wire_text.filter(bool), "tls_certificates": st.sampled_from(["/c", "/\udcff/%"])},
)
places = st.one_of(
    st.fixed_dictionaries({"host": hosts, "port": st.integers(1, 65535)}),
    st.fixed_dictionaries({"socket": sockets}),
)


@st.composite
def targets(draw: st.DrawFn) -> Target:
    return Target(**draw(places), export=draw(wire_text), **draw(st.one_of(st.just({}), secrets)))


@given(targets())
@example(Target("fe80::1%eth0"))
@example(Target("fe80::1%ab"))
@example(Target(socket="/\udcff"))
@example(Target("db1", tls=True, tls_hostname="\udcff"))
def test_canonical_uri_leads_back_to_the_target(target: Target) -> None:
    assert parse_target(target.uri) == target
    assert target.uri.isascii()
    assert target.uri.isprintable()


pieces = st.sampled_from(
    ["nbd", "s", "+unix", "://", "/", "?", "socket=", "tls-hostname=", "&", "%", ":", "[", "]", "@", "1", "x", "\0"]
)
# Joined pieces are decoded anew, because two of them together may be UTF-8.
joined = st.lists(st.one_of(pieces, wire_text)).map(lambda parts: os.fsdecode(os.fsencode("".join(parts))))
texts = st.one_of(wire_text, st.text(), joined)


@given(texts, st.one_of(st.none(), wire_text, st.text()))
def test_any_text_is_a_target_or_malformed(text: str, name: str | None) -> None:
    try:
        target = parse_target(text, name)
    except Malformed as malformed:
        assert str(malformed).isprintable()
        assert malformed.hint.isprintable()
    else:
        assert parse_target(target.uri) == target


# -- tls and the options like it ---------------------------------------------------------------------------------------


@pytest.mark.row(8)
@pytest.mark.parametrize(
    "option", [{"required": True}, {"ca": "/a"}, {"cert": "/c"}, {"hostname": "h"}, {"psk": "/p"}, {"verify": False}]
)
def test_each_option_of_tls_asks_for_tls(option: dict[str, Any]) -> None:
    assert with_tls(parse_target("db1"), **option).tls
    assert not with_tls(parse_target("db1")).tls


def test_paths_of_options_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    target = with_tls(parse_target("db1"), ca="a", cert="c", key="../k")
    assert (target.tls_ca, target.tls_cert) == (f"{tmp_path}/a", f"{tmp_path}/c")
    assert target.tls_key == f"{tmp_path.parent}/k"
    uri = parse_target("nbds://db1?tls-certificates=a&tls-psk-file=../p")
    assert (uri.tls_certificates, uri.tls_psk_file) == (f"{tmp_path}/a", f"{tmp_path.parent}/p")
    tmp_path.rmdir()
    with pytest.raises(Malformed, match="the working directory is gone"):
        with_tls(parse_target("db1"), ca="a")


@pytest.mark.row(8)
@pytest.mark.parametrize("option", ["ca", "cert", "key", "hostname", "psk"])
def test_empty_option_of_tls_is_no_way_into_the_clear(option: str) -> None:
    """An empty one may come from a script with an unset variable."""
    for required in (False, True):
        with pytest.raises(Malformed) as caught:
            with_tls(parse_target("db1"), required=required, **{option: ""})  # type: ignore[arg-type]
        assert (str(caught.value), caught.value.exit_code) == (f"--tls-{option}: empty", 2)


def test_options_go_before_the_uri() -> None:
    target = parse_target("nbds://db1?tls-hostname=h&tls-psk-file=/p")
    assert with_tls(target, required=True) == target
    assert with_tls(target, hostname="other", psk="/q").uri == "nbds://db1?tls-hostname=other&tls-psk-file=/q"


@pytest.mark.parametrize(
    ("options", "line", "hint"),
    [
        ({"key": "/k"}, "--tls-key: a key without its certificate", "give --tls-cert FILE, too"),
        (
            {"psk": "/p", "ca": "/a"},
            "--tls-psk: a pre-shared key cannot be combined with certificates",
            "give one or the other",
        ),
        (
            {"psk": "/p", "cert": "/c"},
            "--tls-psk: a pre-shared key cannot be combined with certificates",
            "give one or the other",
        ),
    ],
)
def test_options_that_do_not_go_together_are_malformed(options: dict[str, str], line: str, hint: str) -> None:
    with pytest.raises(Malformed) as caught:
        with_tls(parse_target("db1"), **options)  # type: ignore[arg-type]
    assert (str(caught.value), caught.value.hint, caught.value.exit_code) == (line, hint, 2)


# -- other servers of the same data ------------------------------------------------------------------------------------

MAIN = Target("db1", export="disk")
SAFE = Target("db1", export="disk", tls=True, tls_ca="/ca", tls_verify=False, tls_hostname="db")


@pytest.mark.parametrize(
    ("target", "text", "other"),
    [
        (MAIN, "db2", Target("db2", export="disk")),
        (MAIN, "/run/s", Target(socket="/run/s", export="disk")),
        (MAIN, "nbd://db2:99/disk", Target("db2", 99, export="disk")),
        (MAIN, "nbds://db2/disk", Target("db2", export="disk", tls=True)),
        (SAFE, "db2", replace(SAFE, host="db2")),
        (SAFE, "nbds://db2/disk?tls-hostname=x", replace(SAFE, host="db2", tls_hostname="x")),
    ],
)
def test_another_server_has_the_export_and_the_trust_of_the_first(target: Target, text: str, other: Target) -> None:
    assert others(target, [text]) == [other]


@pytest.mark.parametrize(
    ("target", "texts", "cause"),
    [
        (MAIN, ["nbd://db2"], "--also nbd://db2: it is the export '', but the TARGET is 'disk'"),
        (SAFE, ["nbd://db2/disk"], "--also nbd://db2/disk: not encrypted, but the TARGET is"),
        (MAIN, ["db1"], "--also db1: this server is named already"),
        (MAIN, ["db2", "nbd://db2/disk"], "--also nbd://db2/disk: this server is named already"),
    ],
)
def test_another_server_that_cannot_have_the_same_data_is_refused(target: Target, texts: list[str], cause: str) -> None:
    with pytest.raises(Malformed) as caught:
        others(target, texts)
    assert str(caught.value) == cause


# -- in records and requests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["nbd://db1/disk", "nbds://db1/disk?tls-hostname=db2", "nbds+unix:///?socket=/s"])
@pytest.mark.parametrize(
    "options", [{}, {"required": True}, {"ca": "/a"}, {"cert": "/c", "key": "/k", "verify": False}, {"psk": "/p"}]
)
def test_a_targets_uri_and_trust_describe_all_of_it(text: str, options: dict[str, Any]) -> None:
    target = with_tls(parse_target(text), **options)
    assert target_of(target.uri, target.trust) == target
    assert (target.trust is None) == (not target.tls)


@pytest.mark.parametrize("trust", [{"colour": "blue"}, {"verify": "no"}, {"ca": True}])
def test_trust_that_is_not_understood_is_not_taken_for_another(trust: Trust) -> None:
    with pytest.raises(Malformed, match="its record has unknown TLS options"):
        target_of("nbds://db1", trust)
