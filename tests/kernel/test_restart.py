# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that restarts, and no application notices: no error, no wrong byte, and soon it goes on."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import far
import pytest
from far import cut_link, heal_link
from leftovers import no_monitor
from load import Load, seconds_for_a_new_read
from servers import Server, free_port, nbdkit
from tool import attached, digest_of, eventually, nbd, promised, shell, sparse_file

from nbdattach.attached import status
from nbdattach.device import parse_device
from nbdattach.monitor.launch import ensure_monitor

pytestmark = [pytest.mark.netlink, pytest.mark.any_monitor]
MIB = 1 << 20
# The promises of the issue, in seconds after the server's return.
NEW, OLD = promised(1.0), promised(6.0)


@dataclass
class Place:
    """A place at which a server can be started again and again: the same address, the same image."""

    image: Path
    unix: str
    port: int

    def serve(
        self, *filters: str, image: Path | None = None, options: Sequence[str] = (), **where: str
    ) -> AbstractContextManager[Server]:
        if self.unix:
            Path(self.unix).unlink(missing_ok=True)  # of one that was killed
        # With more threads a connection, nbdkit 1.32.5 aborts at times when one is reset (raw_send_socket, sock >= 0).
        words = ("--threads=1", *filters, "file", f"file={image or self.image}", *options)
        return nbdkit(*words, port=self.port, unix=self.unix, **where)


def place(folder: Path, name: str, transport: str = "tcp", mebibytes: int = 16) -> Place:
    image = sparse_file(folder / name, mebibytes * MIB)
    return Place(image, f"{folder}/{name}.sock" if transport == "unix" else "", free_port())


def trouble_of(device: str) -> str:
    """The last error in status."""
    trouble = status.status_of(parse_device(device)).trouble
    return str(trouble and trouble["error"])


def state_of(device: str) -> str:
    return status.status_of(parse_device(device)).state


@contextlib.contextmanager
def nothing_goes_wrong(load: Load, image: Path) -> Iterator[None]:
    """During the load, and in the data on the server's disk afterwards."""
    with load:
        yield
        load.see_it_run()
    assert load.errors == []
    assert load.is_on(image)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("away", [3, pytest.param(40, marks=pytest.mark.rare)])  # 60 s of waiting
def test_a_killed_server_comes_back(tmp_path: Path, away: int) -> None:
    """kill -9, with 1 and 4 connections, over TCP and Unix sockets, all four at once."""
    kinds = [(connections, transport) for connections in (1, 4) for transport in ("tcp", "unix")]
    places = [place(tmp_path, f"{connections}-{transport}", transport) for connections, transport in kinds]
    loads = [Load(f"/dev/nbd{number}", writers=2) for number in range(len(kinds))]
    with ExitStack() as servers, ExitStack() as devices:
        running = [servers.enter_context(one.serve()) for one in places]
        for number, (server, (connections, _)) in enumerate(zip(running, kinds, strict=True)):
            devices.enter_context(attached(server.uri, f"nbd{number}", connections=connections))
        for load, one in zip(loads, places, strict=True):
            devices.enter_context(nothing_goes_wrong(load, one.image))
        for load in loads:
            load.see_it_run()
        killed = time.monotonic()
        for server in running:
            server.kill()
        eventually(lambda: {state_of(load.device) for load in loads} == {"reconnecting"})
        time.sleep(max(0.0, killed + away - time.monotonic()))
        gone = time.monotonic()
        back = []
        for one in places:
            servers.enter_context(one.serve())
            back.append(time.monotonic())
        for load in loads:
            assert seconds_for_a_new_read(load.device) < NEW, load.device
            load.see_it_run()
        for load, since in zip(loads, back, strict=True):
            caught = load.caught(gone)
            assert caught
            assert max(one.ended for one in caught) - since < OLD, load.device
        # Requests are served again as soon as the first of four connections is back.
        eventually(lambda: {state_of(load.device) for load in loads} == {"connected"}, OLD)


@pytest.fixture
def network() -> Iterator[str]:
    """A network of its own for a server, with the address 10.9.0.2; its name."""
    with far.network(far.ADDRESS) as name:
        yield name


@pytest.mark.essential
@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize(("cut", "dead_peer"), [(3, 30), (15, 6)])
def test_a_cut_link_heals(tmp_path: Path, network: str, connections: int, cut: int, dead_peer: int) -> None:
    """Shorter than --dead-peer, so that the old connection may live on, and longer."""
    there = place(tmp_path, "image")
    with ExitStack() as stack:
        server = stack.enter_context(there.serve(address="10.9.0.2", namespace=network))
        with attached(server.uri, "nbd0", connections=connections, dead_peer=dead_peer):
            load = Load("/dev/nbd0")
            with nothing_goes_wrong(load, there.image):
                load.see_it_run()
                cut_link()
                gone = time.monotonic()
                time.sleep(cut)
                heal_link()
                back = time.monotonic()
                assert seconds_for_a_new_read("/dev/nbd0") < NEW
                load.see_it_run()
                caught = load.caught(gone + 0.5)
                assert caught
                assert max(one.ended for one in caught) - back < OLD
            eventually(lambda: state_of("nbd0") == "connected")


def test_an_idle_device_notices_a_cut_link_within_dead_peer(network: str) -> None:
    with (
        nbdkit("memory", "1M", address="10.9.0.2", namespace=network) as server,
        attached(server.uri, "nbd0", dead_peer=6),
    ):
        cut_link()
        cut = time.monotonic()
        try:
            eventually(lambda: state_of("nbd0") == "reconnecting")
            noticed = time.monotonic() - cut
        finally:
            heal_link()
        # Also on a busy machine it is sooner than by the default of 30 s.
        assert noticed < min(promised(8), 25)
        eventually(lambda: state_of("nbd0") == "connected", promised(5))


def test_the_server_moves_to_another_address_behind_its_name(tmp_path: Path) -> None:
    hosts = Path("/etc/hosts")
    before = hosts.read_text()
    there = place(tmp_path, "image")
    try:
        hosts.write_text("127.0.0.2 nbd.example\n")
        with ExitStack() as servers, ExitStack() as stack:
            first = servers.enter_context(there.serve(address="127.0.0.2"))
            stack.enter_context(attached(f"nbd.example:{there.port}", "nbd0"))
            load = Load("/dev/nbd0")
            stack.enter_context(nothing_goes_wrong(load, there.image))
            load.see_it_run()
            first.kill()
            time.sleep(1)
            hosts.write_text("127.0.0.3 nbd.example\n")
            servers.enter_context(there.serve(address="127.0.0.3"))
            assert seconds_for_a_new_read("/dev/nbd0") < NEW
            load.see_it_run()
    finally:
        hosts.write_text(before)


def wrong_server(there: Place, wrong: str, folder: Path) -> tuple[AbstractContextManager[Server], str, Path]:
    """The server, its expected error, and the image that must stay unchanged."""
    if wrong == "read-only":
        return there.serve("-r"), "read-only now", there.image
    size = {"smaller": 15 * MIB, "larger": 17 * MIB}[wrong]
    image = sparse_file(folder / wrong, size)
    return there.serve(image=image), f"{size} bytes now, {16 * MIB} were attached", image


@pytest.mark.parametrize("wrong", ["smaller", pytest.param("larger", marks=pytest.mark.essential), "read-only"])
def test_a_wrong_server_is_refused_untouched_and_the_right_one_taken(tmp_path: Path, wrong: str) -> None:
    there = place(tmp_path, "image")
    with ExitStack() as servers, ExitStack() as stack:
        right = servers.enter_context(there.serve())
        stack.enter_context(attached(right.uri, "nbd0"))
        load = Load("/dev/nbd0")
        stack.enter_context(nothing_goes_wrong(load, there.image))
        load.see_it_run()
        right.kill()
        time.sleep(0.5)
        server, said, image = wrong_server(there, wrong, tmp_path)
        before = digest_of(image)
        with server:
            eventually(lambda: said in trouble_of("nbd0"))
            time.sleep(4)
            assert state_of("nbd0") == "reconnecting"
            assert said in nbd("status", "nbd0").out
            done = nbd("reconnect", "nbd0")
            assert (done.code, "nbdattach resize" in done.err) == (4, wrong != "read-only"), done
        assert digest_of(image) == before
        assert said in shell("dmesg")
        servers.enter_context(there.serve())
        load.see_it_run()


def first_error(device: str) -> tuple[float, str]:
    """Reads past all caches until a read fails; when it failed, and how."""
    while True:
        try:
            seconds_for_a_new_read(device)
            time.sleep(0.02)
        except OSError as error:
            return time.monotonic(), str(error.strerror)


@pytest.mark.parametrize("connections", [pytest.param(1, marks=pytest.mark.essential), 2])
@pytest.mark.parametrize(("on_loss", "least", "most"), [(5.0, 4.9, 9.5), (0.0, 0.0, 3.0)])
def test_io_fails_when_on_loss_says_so(
    tmp_path: Path, connections: int, on_loss: float, least: float, most: float
) -> None:
    """Also requests in flight; and when the server is back, the device works again."""
    there = place(tmp_path, "image")
    with ExitStack() as servers, ExitStack() as stack:
        server = servers.enter_context(there.serve())
        stack.enter_context(attached(server.uri, "nbd0", on_loss=on_loss, connections=connections))
        load = Load("/dev/nbd0", writers=2)
        stack.enter_context(load)
        load.see_it_run()
        alive = time.monotonic()
        server.kill()
        killed = time.monotonic()
        failed, why = first_error("/dev/nbd0")
        assert why == "Input/output error"
        eventually(lambda: len(load.errors) >= 2)
        ended = time.monotonic()
        assert least < failed - alive
        assert ended - killed < promised(
            most + 2 * (connections - 1)
        )  # the driver then looks at requests in flight every 3 s
        eventually(lambda: state_of("nbd0") == "lost", promised(5))
        began = time.monotonic()
        with pytest.raises(OSError, match="Input/output error"):
            seconds_for_a_new_read("/dev/nbd0")
        assert time.monotonic() - began < promised(1)
        servers.enter_context(there.serve())
        eventually(lambda: state_of("nbd0") == "connected", promised(10))
        seconds_for_a_new_read("/dev/nbd0")


def test_a_server_that_is_stopped_politely_fails_no_more_than_what_it_refused_first(tmp_path: Path) -> None:
    """nbdkit then refuses each request as long as its client stays; and it stays as long as the client does."""
    there = place(tmp_path, "image")
    with ExitStack() as servers:
        server = servers.enter_context(there.serve("--threads=4"))
        with attached(server.uri, "nbd0"):
            server.stop()
            with pytest.raises(OSError, match="Input/output"):
                eventually(lambda: seconds_for_a_new_read("/dev/nbd0") < 0)
            eventually(lambda: state_of("nbd0") == "reconnecting")
            eventually(lambda: server.has_ended)
            servers.enter_context(there.serve())
            for _ in range(5):
                seconds_for_a_new_read("/dev/nbd0")
            eventually(lambda: state_of("nbd0") == "connected")


def test_slow_is_not_dead(tmp_path: Path) -> None:
    """With one connection. With several the driver never lets a request have more than 3 s: nbdattach(8), LIMITS."""
    slow, seconds = tmp_path / "slow", 40
    pread = f"if [ -e {slow} ]; then sleep {seconds}; fi; head -c $3 /dev/zero"
    with (
        nbdkit("eval", "get_size=echo 16777216", f"pread={pread}", "can_multi_conn=exit 0") as server,
        attached(server.uri, "nbd0"),
    ):
        slow.touch()
        assert seconds <= seconds_for_a_new_read("/dev/nbd0") < 2 * seconds
        assert state_of("nbd0") == "connected"
        slow.unlink()


def test_a_stopped_server_goes_on(tmp_path: Path) -> None:
    """SIGSTOP for longer than --dead-peer: it is slow, with its socket full."""
    there = place(tmp_path, "image")
    with there.serve() as server, attached(server.uri, "nbd0", dead_peer=5):
        load = Load("/dev/nbd0", writers=8)
        with nothing_goes_wrong(load, there.image):
            load.see_it_run()
            server.pause()
            time.sleep(15)
            server.resume()
            load.see_it_run()


def metrics_of(device: str) -> dict[str, float]:
    """Those of the device without labels of their own, by name."""
    lines = nbd("status", "--format", "openmetrics", device).out.splitlines()
    assert lines[-1] == "# EOF"
    samples = (re.fullmatch(rf'nbdattach_device_(\w+){{device="{device}",tag="metrics"}} (.*)', line) for line in lines)
    return {sample[1]: float(sample[2]) for sample in samples if sample}


def test_metrics_count_outages_over_restarts_of_the_monitor(tmp_path: Path) -> None:
    there = place(tmp_path, "image")
    with ExitStack() as servers:
        server = servers.enter_context(there.serve())
        with attached(server.uri, "nbd0", tag="metrics"):
            assert metrics_of("nbd0") == {
                "size_bytes": 16 * MIB, "inflight_requests": 0, "reconnects_total": 0, "away_seconds_total": 0
            }  # fmt: skip
            server.kill()
            eventually(lambda: metrics_of("nbd0").get("last_error_age_seconds", 99) < 10)
            reading = subprocess.Popen(["dd", "if=/dev/nbd0", "of=/dev/null", "bs=4k", "count=1", "iflag=direct"])
            eventually(lambda: metrics_of("nbd0")["inflight_requests"] >= 1)
            no_monitor()
            before = metrics_of("nbd0")
            assert (before["reconnects_total"], before["away_seconds_total"] > 0) == (0, True)
            ensure_monitor()
            servers.enter_context(there.serve())
            assert reading.wait() == 0
            eventually(lambda: metrics_of("nbd0")["reconnects_total"] == 1)
            after = metrics_of("nbd0")
            assert after["away_seconds_total"] > before["away_seconds_total"]
            assert after["last_error_age_seconds"] < after["away_seconds_total"] + 10
            no_monitor()
            ensure_monitor()
            assert metrics_of("nbd0")["reconnects_total"] == 1
            assert metrics_of("nbd0")["away_seconds_total"] == after["away_seconds_total"]
    assert not Path("/run/nbdattach/nbd0.json.history").exists()
