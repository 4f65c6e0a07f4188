# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines of /etc/nbdtab, each attached once by nbd-client and once by `nbdattach up`: the same attachment."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import certificates
import pytest
from listening import clients
from servers import Server, free_port, nbd_server, nbdkit
from tool import BACKEND, command, eventually, nbd, nbd_ok, shell, sparse_file

from nbdattach.attached import status
from nbdattach.boot import table
from nbdattach.device import Device
from nbdattach.errors import NbdattachError, TlsFailed
from nbdattach.kernel import ioctl
from nbdattach.kernel.sysfs import Kernel

pytestmark = pytest.mark.any_monitor

TABLE = Path("/etc/nbdtab")
FIRST = Kernel(Device(0))
MIB = 1 << 20
# nbd-client knows no other port: it ignores `port`.
PORT = 10809
SOCKET = "/run/nbdtab-test.sock"
CLIENT_SECONDS = 20


@dataclass(frozen=True)
class Seen:
    """The visible facts of an attachment; each server has its own size, and the name of the export as data."""

    size: int
    block_size: int
    read_only: bool
    export: bytes
    connections: int
    io_timeout: str | None


def telling(mebibytes: int, *options: str) -> list[str]:
    """Arguments for an nbdkit with the name of the requested export as its data."""
    size = mebibytes * MIB
    filters = ["--filter=cow", "--filter=multi-conn", "--filter=truncate"]
    return [*filters, *options, "info", f"truncate={size}", "multi-conn-mode=unsafe"]


@pytest.fixture
def servers() -> Iterator[None]:
    """At the only port that nbd-client takes from a table, and at a socket."""
    Path(SOCKET).unlink(missing_ok=True)  # a server that was killed leaves it behind
    with (
        nbdkit(*telling(1), port=PORT),
        nbdkit(*telling(2), port=PORT, address="::1"),
        nbdkit(*telling(3), unix=SOCKET),
    ):
        yield


def seen(timeout: bool) -> Seen:
    with open("/dev/nbd0", "rb") as device:
        export = device.read(512).rstrip(b"\0")
    connections = clients(("", PORT)) + clients(SOCKET)
    queue = Path("/sys/block/nbd0/queue/io_timeout").read_text().strip() if timeout else None
    return Seen(FIRST.size, FIRST.block_size, FIRST.read_only, export, connections, queue)


def by_nbd_client(text: str, timeout: bool = False) -> Seen | None:
    """None if it does not attach."""
    TABLE.write_bytes(text.encode(errors="surrogateescape"))
    subprocess.run(["nbd-client", "nbd0"], capture_output=True, timeout=CLIENT_SECONDS, stdin=subprocess.DEVNULL)
    if not FIRST.size:
        return None
    try:
        return seen(timeout)
    finally:
        subprocess.run(["nbd-client", "-d", "/dev/nbd0"], capture_output=True, timeout=CLIENT_SECONDS)
        eventually(lambda: not (FIRST.attached or FIRST.size))
        with open("/dev/nbd0", "rb") as device:
            ioctl.blkroset(device.fileno(), read_only=False)


def nbd_client_refuses_more() -> bool:
    """From 3.26 on it has another parser: it keeps a port, and does not attach some lines that it accepted before."""
    found = re.search(r"(\d+)\.(\d+)", shell("dpkg-query --show nbd-client"))  # 3.27 has no --version any more
    assert found
    return (int(found[1]), int(found[2])) >= (3, 26)


def by_up(text: str, timeout: bool = False) -> Seen | NbdattachError:
    """Of the device nbd0. In this process: a Python and a monitor for each line would take minutes."""
    TABLE.write_bytes(text.encode(errors="surrogateescape"))
    entries, failures = table.chosen(table.read(), [Device(0)])
    for _, outcome in table.up(entries):
        if not isinstance(outcome, NbdattachError):
            try:
                return seen(timeout)
            finally:
                assert table.down(Device(0)) == ""
        failures.append(outcome)
    return failures[0]


def told(found: Seen | NbdattachError | None) -> tuple[int, bytes]:
    """Which server it is, by its size in MiB, and the export that it was asked for."""
    assert isinstance(found, Seen)
    return found.size // MIB, found.export


# -- the same attachment -----------------------------------------------------------------------------------------------

SAME = [
    "localhost disk",
    "127.0.0.1 disk",
    "::1 disk",
    "LOCALHOST disk",
    "127.1 disk",
    "::ffff:127.0.0.1 disk",
    f"{SOCKET} disk unix",
    f"{SOCKET} disk unix,bs=4096,conns=2,timeout=60",
    "127.0.0.1 disk bs=512",
    "127.0.0.1 disk bs=1024",
    "127.0.0.1 disk bs=2048",
    "127.0.0.1 disk bs=4096",
    "127.0.0.1 disk conns=1",
    "127.0.0.1 disk conns=4,timeout=60",
    "127.0.0.1 disk timeout=7",
    "127.0.0.1 disk persist",
    "127.0.0.1 disk swap",
    "127.0.0.1 disk no_optgo",
    "127.0.0.1 disk _netdev",
    "127.0.0.1 disk _netdev,_x-mine=a,_",
    "127.0.0.1 disk bs=4096,conns=3,swap,persist,no_optgo,_netdev,timeout=60",
    # The export is taken as it is written.
    'localhost ""',
    "localhost -",
    "localhost default",
    "localhost a/b%20c",
    "localhost a\\040b#c",
    "localhost d\udcff\udcc3\udca4",
    f"localhost {'x' * 300}",
]
WHOLE = [
    "nbd0 localhost disk",
    "/dev/nbd0 localhost disk\n",
    "nbd0\tlocalhost \t disk\n",
    "\n# one\n#two\n\nnbd0 localhost disk\n\n",
    "nbd0 localhost disk #comment",
    "nbd1 localhost other bs=4096,conns=3,timeout=60\nnbd0 localhost disk\nnbd2 localhost third bs=2048\n",
    "nbd0 localhost disk\nnbd1 localhost disk\n",
]


@pytest.mark.netlink
@pytest.mark.usefixtures("servers")
def test_a_line_that_nbd_client_accepts_gives_the_same_attachment() -> None:
    theirs: dict[str, Seen | NbdattachError | None] = {}
    ours: dict[str, Seen | NbdattachError] = {}
    for text in [*(f"nbd0 {line}\n" for line in SAME), *WHOLE]:
        timeout = "timeout" in text
        theirs[text] = by_nbd_client(text, timeout)
        ours[text] = by_up(text, timeout)
    assert {type(one) for one in ours.values()} == {Seen}
    if nbd_client_refuses_more():
        theirs = {text: one or ours[text] for text, one in theirs.items()}
    assert ours == theirs


@pytest.mark.spoils
@pytest.mark.netlink
def test_a_read_only_export_and_another_server_give_the_same_attachment(tmp_path: Path) -> None:
    with nbdkit(*telling(4, "-r"), port=PORT):
        theirs = by_nbd_client("nbd0 localhost disk\n")
        assert theirs is not None and theirs.read_only
        assert by_up("nbd0 localhost disk\n") == theirs
    exports = {name: str(sparse_file(tmp_path / name, size * MIB)) for name, size in (("first", 3), ("second", 5))}
    with nbd_server(exports, port=PORT):
        for name, size in (("first", 3), ("second", 5)):
            theirs = by_nbd_client(f"nbd0 127.0.0.1 {name}\n")
            assert theirs is not None and theirs.size == size * MIB
            assert by_up(f"nbd0 127.0.0.1 {name}\n") == theirs


@pytest.mark.netlink
def test_tls_gives_the_same_attachment_and_a_verified_server(tmp_path: Path) -> None:
    authority = certificates.Authority(tmp_path / "authority")
    pki = authority.issue(tmp_path / "pki", "server")
    authority.issue(pki, "client")
    own = f"certfile={pki}/client-cert.pem,keyfile={pki}/client-key.pem"
    ca = f"cacertfile={pki}/ca-cert.pem"
    tls = ["--tls=require", f"--tls-certificates={pki}", "--tls-verify-peer"]
    with nbdkit(*telling(4, *tls), port=PORT):
        for options in (f"{own},{ca}", f"{own},{ca},tlshostname=localhost", f"bs=4096,{ca},{own}"):
            theirs = by_nbd_client(f"nbd0 127.0.0.1 disk {options}\n")
            assert told(theirs) == (4, b"disk")
            assert by_up(f"nbd0 127.0.0.1 disk {options}\n") == theirs
        assert isinstance(by_up(f"nbd0 127.0.0.1 disk {own},{ca},tlshostname=elsewhere\n"), TlsFailed)


# -- broken parts of nbd-client's parser -------------------------------------------------------------------------------

REFUSED_THERE = [
    " nbd0 127.0.0.1 disk\n",
    "nbd0 127.0.0.1 disk \n",
    "nbd0 127.0.0.1 disk # comment\n",
    "nbd0 127.0.0.1 disk bs=512 # comment\n",
    "nbd0 127.0.0.1 disk\n # comment\n",
    "nbd0 127.0.0.1 disk\n#no newline",
    "nbd1 127.0.0.1 other # comment\nnbd0 127.0.0.1 disk\n",
    "nbd0 127.0.0.1 disk\nnbd1 127.0.0.1\n",
    "  \nnbd0 127.0.0.1 disk\n",
]


@pytest.mark.netlink
@pytest.mark.usefixtures("servers")
def test_blanks_comments_and_other_lines_do_no_harm() -> None:
    right = by_up("nbd0 127.0.0.1 disk\n")
    for text in REFUSED_THERE:
        assert (text, by_nbd_client(text)) == (text, None)
        assert (text, by_up(text)) == (text, right)


@pytest.mark.netlink
@pytest.mark.usefixtures("servers")
def test_lines_may_end_as_on_other_systems() -> None:
    assert told(by_nbd_client("nbd0 127.0.0.1 disk\r\n")) == (1, b"disk\r")
    assert told(by_up("nbd0 127.0.0.1 disk\r\n")) == (1, b"disk")


@pytest.mark.netlink
@pytest.mark.usefixtures("servers")
def test_port_is_kept() -> None:
    """nbd-client takes another disk, before 3.26."""
    with nbdkit(*telling(4)) as server:
        text = f"nbd0 127.0.0.1 disk port={server.place[1]}\nnbd1 127.0.0.1 other\n"
        assert told(by_nbd_client(text)) == ((4 if nbd_client_refuses_more() else 1), b"disk")
        assert told(by_up(text)) == (4, b"disk")


WRONG_THERE = [
    ("nbd0 127.0.0.1 disk tls", (1, b"disk"), 5),
    ("nbd0 127.0.0.1 disk preinit", (1, b"disk"), 2),
    ("nbd0 127.0.0.1 disk readonly", (1, b"disk"), 2),
    ("nbd0 127.0.0.1 disk bs", (1, b"disk"), 2),
    ("nbd0 127.0.0.1 disk persist=1", (1, b"disk"), 2),
    ("nbd0 127.0.0.1 disk bs=4096,bs=512", (1, b"disk"), 2),
    ("nbd0 127.0.0.1 disk\nnbd0 127.0.0.1 other", (1, b"other"), 2),
    (f"nbd0 {SOCKET} disk unix,port=2000", (3, b"disk"), 2),
    ("nbd0 127.0.0.1 disk port=nbd", (1, b"disk"), 2),
    ("nbd0 127.0.0.1 disk bs=4096#c", (1, b"disk"), 2),
]


@pytest.mark.netlink
@pytest.mark.usefixtures("servers")
def test_what_nbd_client_ignores_is_an_error() -> None:
    for text, taken, code in WRONG_THERE:
        theirs = by_nbd_client(f"{text}\n")
        if theirs or not nbd_client_refuses_more():
            assert (text, told(theirs)) == (text, taken)
        error = by_up(f"{text}\n")
        assert isinstance(error, NbdattachError), text
        assert (text, error.exit_code) == (text, code)
        assert not FIRST.attached


# -- many at the same time ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def eight(tmp_path: Path) -> Iterator[list[Server]]:
    """Servers of 1 to 8 MiB at sockets, and a table with a line for each."""
    with ExitStack() as stack:
        made = [stack.enter_context(nbdkit(*telling(number + 1), unix=f"{tmp_path}/s{number}")) for number in range(8)]
        options = f"backend={BACKEND},connect-timeout=20"
        lines = [f"nbd{number} {tmp_path}/s{number} disk unix,{options}" for number in range(8)]
        TABLE.write_text("\n".join(lines) + "\n")
        yield made


def attached_sizes() -> dict[int, int]:
    return {one.index: one.size // MIB for one in status.all_attached()}


def test_all_at_once_while_one_server_hangs_and_one_refuses(tmp_path: Path) -> None:
    with eight(tmp_path) as servers:
        servers[2].pause()
        servers[5].kill()
        process = subprocess.Popen(command("up", "--all"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        came = {process.stdout.readline().strip() for _ in range(6)}
        assert process.poll() is None, "the one that hangs is still waited for"
        assert came == {f"/dev/nbd{number}" for number in (0, 1, 3, 4, 6, 7)}
        assert attached_sizes() == {number: number + 1 for number in (0, 1, 3, 4, 6, 7)}
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (3, "")
        lines = [line for line in err.splitlines() if not line.startswith("(")]
        assert [line.split(": ")[1] for line in lines] == ["/dev/nbd5", "/dev/nbd2"]
        servers[2].resume()
        again = nbd("up", "--all")
        assert again.code == 3
        assert attached_sizes() == {number: number + 1 for number in (0, 1, 2, 3, 4, 6, 7)}
        assert again.err.count("already attached") == 6
        down = nbd("down", "--all")
        assert (down.code, down.err) == (0, "nbdattach: /dev/nbd5: not attached, nothing to do\n")
        assert attached_sizes() == {}


def test_one_export_at_two_devices_at_once() -> None:
    with nbdkit(*telling(1)) as server:
        TABLE.write_text("".join(f"nbd{number} {server.uri} disk shared,backend={BACKEND}\n" for number in range(2)))
        done = nbd("up", "--all")
        assert (done.code, sorted(done.out.split())) == (0, ["/dev/nbd0", "/dev/nbd1"])
        assert attached_sizes() == {0: 1, 1: 1}
        assert nbd("down", "--all").code == 0
        assert attached_sizes() == {}


@pytest.mark.rare  # a minute on a machine that does nothing else, and deadlines on the clock
@pytest.mark.timeout(600)
@pytest.mark.netlink  # the other backend makes no devices
def test_64_at_once_share_a_cpu_and_none_misses_its_deadline() -> None:
    """Each has 5 seconds, and all together need more than that of the guest's one CPU."""
    with nbdkit(*telling(1)) as server:
        TABLE.write_text("".join(f"nbd{number} {server.uri} disk shared,connect-timeout=5\n" for number in range(64)))
        done = nbd("up", "--all", seconds=300)
        assert (done.code, len(done.out.split()), done.err) == (0, 64, "")
        done = nbd("down", "--all", seconds=300)
        assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.rare)])
def test_up_that_is_killed_leaves_each_device_ready_or_free(tmp_path: Path, number: signal.Signals) -> None:
    with eight(tmp_path):
        process = subprocess.Popen(command("up", "--all"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        came = [process.stdout.readline().strip() for _ in range(2)]
        process.send_signal(number)
        process.communicate(timeout=120)
        assert process.returncode in (-number, 0, 1)  # 1: it came after all were attached, before the end
        sizes = attached_sizes()
        assert {f"/dev/nbd{index}" for index in sizes} >= set(came)
        done = nbd("up", "--all")
        assert (done.code, len(done.out.split())) == (0, 8), done.err
        assert attached_sizes() == {index: index + 1 for index in range(8)}
        assert nbd("down", "--all").code == 0


def test_down_all_is_refused_by_a_mount_and_detaches_the_others(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "image", 32 * MIB)
    with nbdkit("file", f"file={image}") as disk, nbdkit(*telling(2)) as other:
        line = f"backend={BACKEND}"
        TABLE.write_text(f"nbd0 {disk.uri} - {line}\nnbd1 {other.uri} disk {line}\n")
        assert nbd("up", "--all").code == 0
        shell("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
        refused = nbd("down", "--all")
        assert (refused.code, attached_sizes()) == (7, {0: 32})
        assert "mounted at /mnt: umount /mnt" in refused.err
        shell("umount /mnt")
        assert nbd("down", "--all").code == 0


def test_a_line_is_edited_while_its_device_is_attached() -> None:
    """By an administrator; then the unit is restarted: stop, start."""
    with nbdkit(*telling(1)) as old, nbdkit(*telling(2)) as new:
        for server in (old, new):
            TABLE.write_text(f"nbd0 {server.uri} disk backend={BACKEND}\n")
            if server is old:
                nbd_ok("up", "nbd0")
        refused = nbd("up", "nbd0")
        assert (refused.code, attached_sizes()) == (7, {0: 1})
        stopped = nbd("down", "nbd0")
        assert (stopped.code, attached_sizes()) == (0, {})
        assert "was changed or removed since" in stopped.err
        nbd_ok("up", "nbd0")
        assert attached_sizes() == {0: 2}
        nbd_ok("down", "nbd0")


def test_what_somebody_else_has_attached_there_stays() -> None:
    with nbdkit(*telling(1)) as server, nbdkit(*telling(2)) as other:
        TABLE.write_text(f"nbd0 {server.uri} disk\n")
        nbd_ok("connect", other.uri, "nbd0")
        refused = nbd("down", "nbd0")
        assert (refused.code, attached_sizes()) == (7, {0: 2})
        assert f"holds {other.uri}, but /etc/nbdtab:1 says {server.uri}/disk" in refused.err
        assert nbd("up", "nbd0").code == 7
        nbd_ok("disconnect", "nbd0")


def test_a_wait_for_a_server_that_comes_late() -> None:
    port = free_port()
    TABLE.write_text(f"nbd0 127.0.0.1 disk port={port},retry-for=60,backend={BACKEND}\n")
    waiting = command("up", "nbd0")
    process = subprocess.Popen(waiting, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told = process.stderr.readline()
    assert (
        told
        == f"nbdattach: nbd0: nbd://127.0.0.1:{port}/disk: cannot connect: Connection refused; trying again for 60 s\n"
    )
    with nbdkit(*telling(1), port=port):
        assert process.communicate(timeout=90)[0] == "/dev/nbd0\n"
        nbd_ok("down", "nbd0")
