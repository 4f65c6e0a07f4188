# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS that a relay carries: the same promises as without, and no process left behind."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import make
from leftovers import is_relay, workers
from load import Load, seconds_for_a_new_read
from servers import Server, free_port, nbdkit
from tool import (
    BACKEND,
    attached,
    catches,
    command,
    digest_of,
    eventually,
    fill_with_noise,
    nbd,
    nbd_ok,
    promised,
    shell,
    sparse_file,
)

from nbdattach.attached import status
from nbdattach.device import parse_device

MIB = 1 << 20
# A process of ours that all data goes through must be small: the limit for its private memory, in KiB.
MOST_MEMORY = 20 * 1024


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tls") / "certificates")


@dataclass
class Place:
    """A place at which a server with TLS can be started again and again."""

    image: Path
    authority: Path
    port: int

    def serve(self, *options: str) -> AbstractContextManager[Server]:
        tls = ["--tls=require", f"--tls-certificates={self.authority}"]
        return nbdkit(*tls, *options, "file", f"file={self.image}", port=self.port)

    @property
    def uri(self) -> str:
        return f"nbds://127.0.0.1:{self.port}"

    @property
    def ca(self) -> str:
        return str(self.authority / "ca-cert.pem")


@pytest.fixture
def place(tmp_path: Path, authority: Path) -> Place:
    return Place(sparse_file(tmp_path / "image", 64 * MIB), authority, free_port())


def relays() -> list[int]:
    return [pid for pid, line in workers() if is_relay(line)]


def _is_another(than: int) -> bool:
    return relays() not in ([], [than])


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


@pytest.mark.parametrize("connections", [1, pytest.param(4, marks=pytest.mark.essential)])
def test_data_goes_through_one_process(place: Place, connections: int) -> None:
    os.truncate(place.image, 16 * MIB)
    with place.serve():
        options = {"tls_ca": place.ca, "tls_transport": "relay", "connections": connections}
        with attached(place.uri, "nbd0", **options) as attachment:
            written = fill_with_noise("/dev/nbd0", 16)
            Path("/proc/sys/vm/drop_caches").write_text("3")
            assert digest_of("/dev/nbd0") == written
            found = attachment.status()
            assert found.tls and (found.tls["version"], found.tls["transport"]) == ("TLSv1.3", "relay")
            (relay,) = relays()
            if BACKEND == "netlink":
                assert found.pid == relay
        assert relays() == []
    assert digest_of(place.image) == written


def memory(pid: int) -> dict[str, int]:
    """Fields of /proc/PID/status in KiB."""
    lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[2:] == ["kB"]}


def test_the_relay_can_be_relied_upon(place: Place) -> None:
    """It neither waits for memory, nor is it killed for want of it, nor by a signal; and it is small."""
    with place.serve(), attached(place.uri, "nbd0", tls_ca=place.ca, tls_transport="relay"):
        (relay,) = relays()
        fill_with_noise("/dev/nbd0", 32)
        found = memory(relay)
        print(f"relay, KiB: {found}")
        assert found["RssAnon"] < MOST_MEMORY
        assert found["VmLck"] > 0
        assert Path(f"/proc/{relay}/oom_score_adj").read_text().strip() == "-1000"
        assert os.getsid(relay) == relay
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(relay, number)
        time.sleep(0.3)
        assert relays() == [relay]
        assert seconds_for_a_new_read("/dev/nbd0") < promised(5)


@pytest.fixture
def no_tls_module() -> Iterator[None]:
    rule = Path("/etc/modprobe.d/no-tls.conf")
    shell("modprobe -r tls || ! grep -q '^tls ' /proc/modules")
    rule.write_text("install tls /bin/false\n")
    yield
    rule.unlink()


def debugged(*arguments: str) -> str:
    """The output of `connect --debug`."""
    done = nbd("connect", "--debug", *arguments)
    assert done.code == 0, done
    return done.err


def transport(device: str) -> str:
    found = status.status_of(parse_device(device)).tls
    assert found
    return found["transport"]


def test_auto_takes_the_relay_where_the_kernel_has_no_tls(place: Place, no_tls_module: None) -> None:
    with place.serve():
        assert "relay" in debugged("--tls-ca", place.ca, place.uri, "nbd0")
        assert transport("nbd0") == "relay"
        refused = nbd("connect", "--tls-ca", place.ca, "--tls-transport", "kernel", place.uri, "nbd1")
        assert refused.code == 5
        nbd_ok("disconnect", "nbd0")
        assert relays() == []


def test_auto_takes_the_relay_where_the_server_does_no_tls_1_2(place: Place) -> None:
    with only_1_3(place):
        assert "relay" in debugged("--tls-ca", place.ca, place.uri, "nbd0")
        found = status.status_of(parse_device("nbd0")).tls
        assert found and (found["version"], found["transport"]) == ("TLSv1.3", "relay")
        nbd_ok("disconnect", "nbd0")


@contextlib.contextmanager
def only_1_3(place: Place) -> Iterator[None]:
    """GnuTLS takes the priorities of the system from a file."""
    priorities = Path(f"{place.image}.priorities")
    older = ("tls1.2", "tls1.1", "tls1.0", "dtls1.2", "dtls1.0")
    priorities.write_text("[overrides]\n" + "".join(f"disabled-version = {one}\n" for one in older))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GNUTLS_SYSTEM_PRIORITY_FILE", str(priorities))
        with place.serve():
            yield


def test_auto_takes_the_kernel_where_that_can(place: Place) -> None:
    with place.serve():
        debugged("--tls-ca", place.ca, place.uri, "nbd0")
        assert transport("nbd0") == "kernel"
        assert relays() == []
        nbd_ok("disconnect", "nbd0")


@pytest.mark.netlink
@pytest.mark.parametrize("connections", [1, 4])
def test_a_killed_server_comes_back(place: Place, connections: int) -> None:
    """Over the same relay: to start another one might need the very disk that is away."""
    with ExitStack() as servers, ExitStack() as stack:
        server = servers.enter_context(place.serve())
        options = {"tls_ca": place.ca, "tls_transport": "relay", "connections": connections}
        stack.enter_context(attached(place.uri, "nbd0", **options))
        before = relays()
        load = Load("/dev/nbd0", writers=4)
        with nothing_goes_wrong(load, place.image):
            for away in (0.5, 6):
                load.see_it_run()
                server.kill()
                eventually(lambda: state_of("nbd0") == "reconnecting")
                time.sleep(away)
                server = servers.enter_context(place.serve())
                load.see_it_run()
            eventually(lambda: state_of("nbd0") == "connected")
        assert relays() == before


@pytest.mark.netlink
@pytest.mark.parametrize("connections", [1, 4])
def test_a_killed_relay_is_replaced(place: Place, connections: int) -> None:
    with place.serve():
        options = {"tls_ca": place.ca, "tls_transport": "relay", "connections": connections}
        with attached(place.uri, "nbd0", **options) as attachment:
            load = Load("/dev/nbd0", writers=4)
            with nothing_goes_wrong(load, place.image):
                for _ in range(3):
                    load.see_it_run()
                    (relay,) = relays()
                    os.kill(relay, signal.SIGKILL)
                    eventually(functools.partial(_is_another, relay))
                    load.see_it_run()
                    eventually(lambda: state_of("nbd0") == "connected")
            assert [attachment.status().pid] == relays()
        assert relays() == []


@pytest.mark.netlink
def test_a_monitor_that_was_restarted_takes_over(place: Place) -> None:
    """It has no way to the existing relay, which ends with its connections; so it starts another."""
    with ExitStack() as servers, ExitStack() as stack:
        server = servers.enter_context(place.serve())
        stack.enter_context(attached(place.uri, "nbd0", tls_ca=place.ca, tls_transport="relay"))
        load = Load("/dev/nbd0")
        with nothing_goes_wrong(load, place.image):
            load.see_it_run()
            (before,) = relays()
            (monitor,) = [pid for pid, line in workers() if not is_relay(line)]
            os.kill(monitor, signal.SIGKILL)
            load.see_it_run()
            nbd_ok("monitor", "--background")
            load.see_it_run()
            server.kill()
            time.sleep(1)
            servers.enter_context(place.serve())
            load.see_it_run()
            (after,) = relays()
            assert after != before


@pytest.mark.netlink
def test_a_relay_that_is_stopped_is_no_dead_one_and_a_detach_leaves_nothing(place: Place) -> None:
    with place.serve(), attached(place.uri, "nbd0", tls_ca=place.ca, tls_transport="relay"):
        load = Load("/dev/nbd0")
        with nothing_goes_wrong(load, place.image):
            load.see_it_run()
            (relay,) = relays()
            os.kill(relay, signal.SIGSTOP)
            time.sleep(8)
            os.kill(relay, signal.SIGCONT)
            load.see_it_run()
        assert relays() == [relay]


def test_no_reconnect_and_failures_leave_no_process(place: Place) -> None:
    with place.serve():
        options: Sequence[str] = ("--tls-ca", place.ca, "--tls-transport", "relay")
        assert nbd("connect", *options, "--expect-size", "1", place.uri, "nbd0").code == 4
        wrong = nbd("connect", "--tls-transport", "relay", "--tls", place.uri, "nbd0")
        assert wrong.code == 5
        eventually(lambda: relays() == [])
        nbd_ok("connect", *options, "--no-reconnect", place.uri, "nbd0")
        assert len(relays()) == 1
        nbd_ok("disconnect", "nbd0")
        assert relays() == []
    refused = nbd("connect", *options, place.uri, "nbd0")
    assert refused.code == 3, refused
    eventually(lambda: relays() == [])


def test_foreground(place: Place) -> None:
    options = ("--tls-ca", place.ca, "--tls-transport", "relay")
    with place.serve():
        process = subprocess.Popen(command("connect", "-f", *options, place.uri, "nbd0"), stdout=subprocess.PIPE)
        assert process.stdout
        with process.stdout:
            assert process.stdout.readline() == b"/dev/nbd0\n"
        assert seconds_for_a_new_read("/dev/nbd0") < promised(5)
        eventually(lambda: catches(process.pid, signal.SIGTERM))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert relays() == []


def test_a_detach_takes_no_longer_for_it(place: Place) -> None:
    """Neither side waits for the other's patience to end."""
    with place.serve():
        nbd_ok("connect", "--tls-ca", place.ca, "--tls-transport", "relay", place.uri, "nbd0")
        began = time.monotonic()
        nbd_ok("disconnect", "nbd0")
        assert time.monotonic() - began < promised(4)
