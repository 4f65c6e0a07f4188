# SPDX-License-Identifier: GPL-2.0-or-later
"""The servers that people run: nbdkit, qemu-nbd, nbd-server. No kernel driver, no root."""

from __future__ import annotations

import contextlib
import gc
import os
import shlex
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import certificates
import pytest
from servers import Server, nbd_server, nbdkit, poll, qemu_nbd, qemu_nbd_of_its_own, storage_daemon

from nbdattach.backends.durability import lack_of_flush
from nbdattach.backends.limits import attachable, refusal
from nbdattach.cli import main
from nbdattach.connect_options import ConnectOptions
from nbdattach.connection import client
from nbdattach.errors import (
    ConnectionLost,
    DeadlinePassed,
    NbdattachError,
    NoConnection,
    Refused,
    TlsFailed,
    UnknownExport,
)
from nbdattach.operations.connections import connected
from nbdattach.protocol import transmission
from nbdattach.protocol.export import BlockSize, Export
from nbdattach.protocol.options import DENIED
from nbdattach.protocol.target import Target, parse_target
from nbdattach.reporter import silent

SIZE = 1 << 20
# The time limit of a test of an honest server, in seconds.
SOON = 60.0
Start = Callable[[str], AbstractContextManager[Server]]


def inspect(uri: str) -> Export:
    return client.inspect(parse_target(uri), SOON).export


def listed(uri: str) -> list[tuple[str, str, int | None]]:
    return [(one.name, one.description, one.size) for one in client.list_exports(parse_target(uri), SOON)]


def passes(uri: str) -> None:
    checked = client.check(parse_target(uri), attachable, SOON)
    assert checked.error is None, checked.error


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return str(path)


STARTS: dict[str, Callable[[str, str], AbstractContextManager[Server]]] = {
    "nbdkit": lambda image, unix: nbdkit("file", image, unix=unix),
    "qemu-nbd": lambda image, unix: qemu_nbd(image, unix=unix),
    # It offers NBD_FLAG_SEND_FLUSH only when told to.
    "nbd-server": lambda image, unix: nbd_server({"disk": image}, "flush = true", unix=unix),
}
# The name that each serves its export by.
NAMES = {"nbdkit": "", "qemu-nbd": "", "nbd-server": "disk"}


@pytest.fixture(params=["tcp", "unix"])
def start(request: pytest.FixtureRequest, image: str, tmp_path: Path) -> Start:
    unix = str(tmp_path / "nbd.sock") if request.param == "unix" else ""
    return lambda kind: STARTS[kind](image, unix)


@pytest.mark.parametrize("kind", STARTS)
def test_server_is_inspected_listed_and_checked(kind: str, start: Start) -> None:
    with start(kind) as server:
        uri = server.export(NAMES[kind])
        export = inspect(uri)
        assert (export.size, export.protocol, export.read_only) == (SIZE, "newstyle-fixed", False)
        assert "send_flush" in export.flag_names
        assert [one[0] for one in listed(server.uri)] == [NAMES[kind]]
        passes(uri)


@pytest.mark.parametrize("kind", ["nbdkit", "qemu-nbd"])
def test_list_tells_sizes(kind: str, start: Start) -> None:
    with start(kind) as server:
        assert [one[2] for one in listed(server.uri)] == [SIZE]


@pytest.mark.row(6)
@pytest.mark.parametrize("kind", ["qemu-nbd", "nbd-server"])
def test_unknown_export_is_told_with_what_there_is(kind: str, start: Start) -> None:
    with start(kind) as server, pytest.raises(UnknownExport) as caught:
        inspect(server.export("none"))
    assert str(caught.value).startswith(
        f"{parse_target(server.export('none')).uri}: the server has no export named 'none'"
    )
    there = shlex.quote(parse_target(server.uri).uri)
    name = NAMES[kind]
    only = f"it lists only a default export, which has no name: use {there}"
    assert caught.value.hint == (f"it offers: {name}; see nbdattach list {there}" if name else only)


@pytest.mark.row(6)
def test_default_export_that_nbdkit_lists_and_does_not_open_is_told_so() -> None:
    """The filter lists what the plugin has, and is told to open only another name."""
    strict = ("--filter=exportname", "memory", "1M", "exportname=disk", "exportname-strict=true")
    with nbdkit(*strict) as server:
        assert listed(server.uri) == [("", "", None)]
        with pytest.raises(Refused, match="the server lists a default export, but refuses to open it") as caught:
            inspect(server.uri)
        assert caught.value.hint == (
            "see its log: nbdkit answers this if it cannot open the disk of the export; "
            "or the export has a name that it does not list: -N NAME"
        )
        assert inspect(server.export("disk")).size == SIZE


@pytest.mark.row(5)
@pytest.mark.parametrize("name", ["", "none"])
def test_server_without_a_list_that_closes_the_connection_is_not_quoted(name: str) -> None:
    """Plain new style has neither NBD_OPT_GO nor NBD_OPT_LIST."""
    strict = ("--filter=exportname", "memory", "1M", "exportname=disk", "exportname-strict=true")
    with nbdkit("--mask-handshake=0", *strict) as server:
        what = "the export 'none'" if name else "its default export"
        with pytest.raises(Refused, match=f"the server closed the connection when asked for {what}"):
            inspect(server.export(name))
        assert inspect(server.export("disk")).size == SIZE


def test_server_is_left_in_peace() -> None:
    """Soft disconnects only: those that look end with NBD_OPT_ABORT, the check with NBD_CMD_DISC."""
    with nbdkit("--verbose", "memory", str(SIZE)) as server:
        inspect(server.uri)
        listed(server.uri)
        passes(server.uri)
        poll(lambda: server.log.count("client sent NBD_CMD_DISC") == 1, "nbdkit to tell of one NBD_CMD_DISC")
        assert server.log.count("replying to NBD_OPT_ABORT") == 2


# -- to look costs nothing ---------------------------------------------------------------------------------------------


@pytest.mark.row(15)
def test_looking_does_not_end_a_qemu_nbd_that_serves_one_client(image: str) -> None:
    with qemu_nbd_of_its_own(image) as server:
        for _ in range(2):
            assert inspect(server.uri).size == SIZE
            assert listed(server.uri) == [("", "", SIZE)]
            with pytest.raises(UnknownExport):
                inspect(server.export("none"))
        with client.connect(parse_target(server.uri), SOON).stream as stream:
            assert stream.run(transmission.read("server", 0, 512, 1)) == bytes(512)
        poll(lambda: server.has_ended, "qemu-nbd to end with its client")


@pytest.mark.row(15)
def test_looking_takes_no_place_of_qemu_storage_daemon(image: str, tmp_path: Path) -> None:
    with storage_daemon(image, str(tmp_path / "nbd.sock"), clients=1) as server:
        for _ in range(2):
            assert inspect(server.export("disk")).size == SIZE
            assert listed(server.uri) == [("disk", "", SIZE)]
        passes(server.export("disk"))


@pytest.mark.row(15)
def test_listing_takes_no_place_of_nbd_server(image: str) -> None:
    with nbd_server({"disk": image}, "maxconnections = 1") as server:
        for _ in range(2):
            assert [name for name, _, _ in listed(server.uri)] == ["disk"]
        passes(server.export("disk"))


@pytest.mark.row(15)
def test_size_of_nbd_server_is_known_only_to_a_client_that_enters(image: str) -> None:
    """So `info` has to enter, which takes one of its maxconnections; the manual says so."""
    asked: list[str] = []
    with nbd_server({"disk": image}) as server:
        found = client.inspect(parse_target(server.export("disk")), SOON, asked.append).export
    assert found.size == SIZE
    assert [text.split(",")[0] for text in asked if text.startswith(("NBD_OPT", "NBD_CMD"))] == [
        "NBD_OPT_INFO",
        "NBD_OPT_GO",
        "NBD_CMD_DISC",
    ]


# -- styles of the handshake -------------------------------------------------------------------------------------------


@pytest.mark.row(3)
def test_old_style_nbdkit() -> None:
    with nbdkit("--oldstyle", "--readonly", "memory", str(SIZE)) as server:
        export = inspect(server.uri)
        assert (export.size, export.protocol, export.read_only) == (SIZE, "oldstyle", True)
        passes(server.uri)
        with pytest.raises(Refused, match="an old style server has one export and cannot list it"):
            listed(server.uri)
        with pytest.raises(Refused, match="an old style server has one export, without a name"):
            inspect(server.export("disk"))


@pytest.mark.row(2)
@pytest.mark.parametrize(
    ("mask", "protocol"), [(0, "newstyle"), (1, "newstyle-fixed"), (2, "newstyle"), (3, "newstyle-fixed")]
)
def test_nbdkit_that_offers_only_some_handshake_flags(mask: int, protocol: str) -> None:
    with nbdkit(f"--mask-handshake={mask}", "memory", str(SIZE)) as server:
        export = inspect(server.export("any"))
        assert (export.size, export.protocol, export.name) == (SIZE, protocol, "any")
        passes(server.export("any"))


@pytest.mark.row(2)
def test_plain_new_style_nbdkit_cannot_list() -> None:
    cannot = pytest.raises(Refused, match="without fixed newstyle cannot list")
    with nbdkit("--mask-handshake=0", "memory", str(SIZE)) as server, cannot:
        listed(server.uri)


# -- names, descriptions, sizes ----------------------------------------------------------------------------------------

NAMED = (
    "eval",
    "open=echo $3",
    "get_size=case $2 in root) echo 1M;; swap) echo 2M;; *) echo ENOENT >&2; exit 1;; esac",
)


@pytest.mark.row(5)
def test_named_exports_of_nbdkit_have_their_own_sizes() -> None:
    with nbdkit(*NAMED, "list_exports=printf 'NAMES\\nroot\\nswap\\n'") as server:
        assert listed(server.uri) == [("root", "", 1 << 20), ("swap", "", 2 << 20)]
        assert inspect(server.export("swap")).size == 2 << 20
        with pytest.raises(NbdattachError) as caught:
            inspect(server.export("none"))
        assert caught.value.exit_code == 4


@pytest.mark.row(7)
def test_description_is_kept() -> None:
    listing = "list_exports=printf 'NAMES+DESCRIPTIONS\\nroot\\nof all\\n'"
    with nbdkit("eval", "get_size=echo 1M", listing, "export_description=echo of all") as server:
        assert listed(server.uri) == [("root", "of all", SIZE)]
        assert inspect(server.export("root")).description == "of all"


def test_export_and_description_of_qemu_nbd(image: str) -> None:
    with qemu_nbd(image, "--export-name=disk", "--description=of all", "--read-only") as server:
        export = inspect(server.export("disk"))
        assert (export.description, export.read_only) == ("of all", True)
        assert listed(server.uri) == [("disk", "of all", SIZE)]


@pytest.mark.parametrize("name", ["a b", "größe", "a/b", "/", "#?%&", "n" * 255])
def test_odd_names_reach_the_server(name: str, image: str) -> None:
    with qemu_nbd(image, f"--export-name={name}") as server:
        assert inspect(server.export(name)).size == SIZE
        assert listed(server.uri)[0][0] == name


@pytest.mark.row(7)
def test_nbdkit_with_hundreds_of_exports() -> None:
    names = [f"export-{number:03}" for number in range(500)]
    told = (f"exportname={name}" for name in names)
    with nbdkit("--filter=exportname", "memory", "1M", "exportname-list=explicit", *told) as server:
        assert listed(server.uri) == [(name, "", SIZE) for name in names]


@pytest.mark.row(7)
def test_nbd_server_with_hundreds_of_exports(image: str, tmp_path: Path) -> None:
    exports = {f"export-{number:03}": image for number in range(300)}
    with nbd_server(exports, unix=str(tmp_path / "s")) as server:
        found = listed(server.uri)
        assert {name for name, _, _ in found} == set(exports)
        passes(server.export("export-299"))


@pytest.mark.parametrize(("extra", "lacks"), [("", True), ("flush = true", False), ("readonly = true", False)])
def test_nbd_server_offers_flush_only_if_told_to(image: str, extra: str, lacks: bool) -> None:
    with nbd_server({"disk": image}, extra) as server:
        assert bool(lack_of_flush(inspect(server.export("disk")))) == lacks


def test_info_tells_of_a_tail_that_a_device_would_lack(capsys: pytest.CaptureFixture[str]) -> None:
    with nbdkit("memory", "1000") as server:
        assert main.run(["info", server.uri]) == 0
    assert "note:        the last 488 bytes are less than a block and cannot be reached\n" in capsys.readouterr().out


@pytest.mark.row(7)
def test_nbd_server_that_tells_no_size_is_not_said_to_have_empty_exports(start: Start) -> None:
    """It answers NBD_OPT_INFO with size 0: it opens the export for NBD_OPT_GO only."""
    with start("nbd-server") as server:
        assert listed(server.uri) in ([("disk", "", SIZE)], [("disk", "", None)])
        assert inspect(server.export("disk")).size == SIZE


@pytest.mark.parametrize("size", [0, 1, 511, 512, (1 << 62), (1 << 62) - 512, (1 << 63) - 1])
def test_size_is_exact(size: int) -> None:
    plugin = ("eval", f"get_size=echo {size}", "pread=dd if=/dev/zero bs=$3 count=1")
    with nbdkit(*plugin) as server:
        assert inspect(server.uri).size == size


def not_attachable(uri: str) -> tuple[str, int]:
    """The cause and exit code of `check`, which are those of `info`."""
    checked, refused = client.check(parse_target(uri), attachable, SOON), refusal(uri, inspect(uri))
    assert checked.error is not None
    assert checked.read_ms is None
    assert refused is not None
    assert (refused.cause, refused.exit_code) == (checked.error.cause, checked.error.exit_code)
    return refused.cause, refused.exit_code


@pytest.mark.row(12)
@pytest.mark.parametrize("size", [0, 511])
@pytest.mark.parametrize("kind", ["nbdkit", "nbd-server"])
def test_export_of_less_than_a_block_is_not_ok(kind: str, size: int, start: Start, image: str) -> None:
    Path(image).write_bytes(bytes(size))
    with start(kind) as server:
        cause = f"the export has {size} bytes, less than one block of 512"
        assert not_attachable(server.export(NAMES[kind])) == (cause, 4)


@pytest.mark.row(12)
def test_empty_image_of_qemu_nbd_is_not_ok(image: str) -> None:
    """qemu-nbd 7.2 announces other sizes than 0 in whole sectors."""
    Path(image).write_bytes(b"")
    with qemu_nbd(image) as server:
        assert not_attachable(server.uri) == ("the export has 0 bytes, less than one block of 512", 4)


@pytest.mark.row(5)
@pytest.mark.parametrize(("minimum", "maximum"), [(4096, 65536), (512, 65536), (1, 65536)])
def test_block_sizes_are_told_and_honoured(minimum: int, maximum: int) -> None:
    sizes = (f"blocksize-minimum={minimum}", "blocksize-preferred=65536", f"blocksize-maximum={maximum}")
    policy = ("--filter=blocksize-policy", "memory", "1M", *sizes, "blocksize-error-policy=error")
    with nbdkit(*policy) as server:
        assert inspect(server.uri).block_size == BlockSize(minimum, 65536, maximum)
        passes(server.uri)


@pytest.mark.row(12)
def test_minimum_block_that_the_kernel_does_not_take_is_not_ok() -> None:
    sizes = ("blocksize-minimum=65536", "blocksize-preferred=65536", "blocksize-maximum=65536")
    with nbdkit("--filter=blocksize-policy", "memory", "1M", *sizes, "blocksize-error-policy=error") as server:
        cause = "the server's minimum block size is 65536, but the kernel accepts at most 4096"
        assert not_attachable(server.uri) == (cause, 6)


@pytest.mark.row(12)
def test_read_error_of_the_server_is_told() -> None:
    with nbdkit("--filter=error", "memory", "1M", "error-pread=ENOSPC", "error-pread-rate=1") as server:
        error = client.check(parse_target(server.uri), attachable, SOON).error
    assert type(error) is Refused
    assert str(error) == f"{server.uri}: reading 4096 bytes at 0 failed: no space left on device (28)"


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def secure(authority: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """nbdkit that requires TLS; this process trusts its authority."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca-cert.pem"))
    with nbdkit("--tls=require", f"--tls-certificates={authority}", "memory", str(SIZE)) as server:
        yield server


@pytest.mark.row(8)
def test_server_that_requires_tls_says_so(secure: Server) -> None:
    with pytest.raises(TlsFailed) as caught:
        inspect(secure.export("disk"))
    assert str(caught.value).startswith(f"{secure.export('disk')}: the server requires TLS")
    assert caught.value.hint == f"use --tls, or {secure.export('disk', 'nbds')}"


@pytest.fixture
def fallback(authority: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """nbdkit that shows its disk over TLS only, and a notice without TLS."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca-cert.pem"))
    args = ("--filter=tls-fallback", "--tls=on", f"--tls-certificates={authority}", "memory", str(SIZE))
    with nbdkit(*args) as server:
        yield server


@pytest.mark.row(16)
def test_notice_of_nbdkit_is_no_disk(fallback: Server) -> None:
    target = parse_target(fallback.export("disk"))
    error = client.check(target, attachable, SOON).error
    for ask in (client.inspect, client.connect):
        with pytest.raises(TlsFailed) as caught:
            ask(target, SOON)
        assert (str(caught.value), caught.value.hint) == (
            str(error),
            f"use --tls, or {fallback.export('disk', 'nbds')}",
        )
    cause = "the server requires TLS: without it, it shows a notice of 512 bytes in place of the export"
    assert str(error) == f"{target.uri}: {cause}"
    assert inspect(fallback.export("disk", "nbds")).size == SIZE
    passes(fallback.export("disk", "nbds"))


@pytest.mark.row(16)
def test_small_read_only_disk_of_nbdkit_is_a_disk() -> None:
    with nbdkit("--readonly", "--filter=truncate", "pattern", "1M", "truncate=512") as server:
        assert inspect(server.uri).size == 512
        passes(server.uri)


@pytest.mark.row(8)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_verified_server_is_used_over_tls(secure: Server, host: str) -> None:
    target = Target(host, int(secure.place[1]), export="disk", tls=True)
    inspected = client.inspect(target, SOON)
    assert inspected.export.size == SIZE
    assert inspected.tls is not None
    assert inspected.tls[0] in ("TLSv1.2", "TLSv1.3")
    passes(target.uri)
    assert listed(target.uri)[0][2] == SIZE


@pytest.mark.row(8)
def test_connection_over_tls_is_one_socket_from_then_on(secure: Server) -> None:
    """The plain socket has become the TLS one: the stream's own, and no other object holds its descriptor."""
    with client.connect(parse_target(secure.export("disk", "nbds")), SOON).stream as stream:
        assert isinstance(stream.sock, ssl.SSLSocket)
        assert stream.tls == (stream.sock.version(), (stream.sock.cipher() or ("",))[0])
        assert stream.run(transmission.read("server", 0, 512, 1)) == bytes(512)
        assert stream.run(transmission.disconnect()) is None
    assert stream.sock.fileno() == -1


@pytest.mark.row(8)
def test_name_to_verify_may_be_given(secure: Server) -> None:
    passes(secure.export("disk", "nbds") + "?tls-hostname=localhost")


@pytest.mark.row(8)
def test_server_of_another_name_is_not_verified(secure: Server) -> None:
    with pytest.raises(TlsFailed, match=r"is for 'localhost', '127\.0\.0\.1', '::1', not for 'db1\.example'") as caught:
        inspect(secure.export("disk", "nbds") + "?tls-hostname=db1.example")
    assert caught.value.exit_code == 5


@pytest.mark.row(8)
def test_server_of_an_unknown_authority_is_not_verified(secure: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(TlsFailed, match="the server is not verified: "):
        inspect(secure.export("disk", "nbds"))


@pytest.mark.row(8)
def test_tls_over_a_unix_socket_needs_a_name(authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca-cert.pem"))
    args = ("--tls=require", f"--tls-certificates={authority}", "memory", "1M")
    with nbdkit(*args, unix=str(tmp_path / "s")) as server:
        passes(server.export("x", "nbds") + "&tls-hostname=localhost")
        with pytest.raises(TlsFailed):
            inspect(server.export("x", "nbds"))


@pytest.mark.row(8)
@pytest.mark.parametrize("style", [(), ("--oldstyle",), ("--mask-handshake=0",)])
def test_server_without_tls_is_refused(style: tuple[str, ...]) -> None:
    with nbdkit(*style, "memory", "1M") as server, pytest.raises(TlsFailed) as caught:
        inspect(server.export("", "nbds"))
    assert caught.value.exit_code == 5


def test_connection_over_tls_is_closed_after_use(secure: Server) -> None:
    target = parse_target(secure.export("disk", "nbds"))
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        client.inspect(target, SOON)
        client.list_exports(target, SOON)
        assert client.check(target, attachable, SOON).error is None
        gc.collect()
    assert [str(one.message) for one in caught] == []


# -- servers that go away ----------------------------------------------------------------------------------------------


def test_killed_server_is_no_connection(image: str) -> None:
    with qemu_nbd(image) as server:
        passes(server.uri)
        server.kill()
        error = client.check(parse_target(server.uri), attachable, SOON).error
    assert isinstance(error, NoConnection)
    assert error.cause == "cannot connect: Connection refused"


@pytest.mark.parametrize("kind", STARTS)
def test_server_killed_in_the_middle_is_a_lost_connection(kind: str, start: Start) -> None:
    with start(kind) as server:
        connection = client.connect(parse_target(server.export(NAMES[kind])), SOON)
        server.kill()
        with connection.stream as stream, pytest.raises(ConnectionLost):
            stream.run(transmission.read("server", 0, 4096, 1))


def test_server_killed_during_the_handshake_is_a_lost_connection() -> None:
    """It is killed at the moment that it is asked for the export, which it would never answer."""
    with nbdkit("eval", "open=tail -f /dev/null", "get_size=echo 1M") as server:
        asked = threading.Event()

        def trace(text: str) -> None:
            if text.startswith("NBD_OPT_INFO"):
                asked.set()

        def kill_when_asked() -> None:
            asked.wait(SOON)
            server.kill()

        killer = threading.Thread(target=kill_when_asked)
        killer.start()
        with pytest.raises(NbdattachError) as caught:
            client.inspect(parse_target(server.uri), SOON, trace)
        killer.join()
    assert caught.value.exit_code == 3


def test_paused_server_is_left_at_the_deadline(image: str) -> None:
    with qemu_nbd(image) as server:
        server.pause()
        with pytest.raises(DeadlinePassed):
            client.inspect(parse_target(server.uri), 0.3)
        server.resume()
        passes(server.uri)


# -- servers with few places -------------------------------------------------------------------------------------------


def test_auto_takes_as_many_connections_as_qemu_nbd_has_places(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It offers several as soon as --shared is more than one, and says nothing to the third client."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    with qemu_nbd(image, "--shared=2") as server:
        target = parse_target(server.uri)
        with connected(target, ConnectOptions(connect_timeout=SOON), silent) as (_, made, _, notes):
            assert len(made) == 2
            assert notes == [f"{target.uri}: the server accepted 2 of 4 connections; -C 2 asks for no more"]


def test_qemu_nbd_that_serves_its_only_client_is_said_to_be_full_perhaps(image: str) -> None:
    with qemu_nbd(image, "--shared=1") as server:
        target = parse_target(server.uri)
        with client.connect(target, SOON).stream:
            error = client.check(target, attachable, 1.0).error
        assert error is not None
        assert error.cause.endswith("(waiting for the server's greeting): the server may be full")
        assert "-e N" in error.hint


@pytest.mark.parametrize("why", ["maxconnections", "file", "prerun", "authfile"])
def test_nbd_server_that_denies_is_given_all_its_reasons(image: str, tmp_path: Path, why: str) -> None:
    """It has the same words for each: so there is one hint for all."""
    (tmp_path / "others").write_text("192.0.2.1\n")
    file, extra = image, {"maxconnections": "maxconnections = 1", "prerun": "prerun = false"}.get(why, "")
    if why == "authfile":
        extra = f"authfile = {tmp_path}/others"
    if why == "file":
        file = f"{tmp_path}/missing"
    with nbd_server({"disk": file}, extra) as server:
        target = parse_target(server.export("disk"))
        with contextlib.ExitStack() as held:
            if why == "maxconnections":
                held.enter_context(client.connect(target, SOON).stream)
            for ask in (client.inspect, client.connect):
                with pytest.raises(Refused, match="the server's policy refuses this export to this client") as caught:
                    ask(target, SOON)
                assert (caught.value.hint, caught.value.exit_code) == (DENIED, 4)
            assert [name for name, _, _ in listed(server.uri)] == ["disk"]


def test_nbd_server_counts_clients_that_have_left(image: str) -> None:
    """So the hint says "since its start": to wait, or to detach another client, does not help."""
    with nbd_server({"disk": image}, "maxconnections = 2") as server:
        for _ in range(2):
            passes(server.export("disk"))
        error = client.check(parse_target(server.export("disk")), attachable, SOON).error
        assert error is not None
        assert error.hint == DENIED


def test_nbd_server_that_does_not_list_is_told_with_the_option(image: str) -> None:
    with nbd_server({"disk": image}, generic="allowlist = false") as server:
        with pytest.raises(Refused, match="the server's policy forbids listing its exports") as caught:
            listed(server.uri)
        there = parse_target(server.uri).uri
        assert caught.value.hint == (
            f"nbd-server lists its exports with allowlist = true; nbdattach info -N NAME {there} shows one of them"
        )
        with pytest.raises(UnknownExport) as unknown:
            inspect(server.export("none"))
        assert unknown.value.hint == "it does not list its exports: see its configuration for their names"
