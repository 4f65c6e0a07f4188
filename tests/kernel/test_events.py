# SPDX-License-Identifier: GPL-2.0-or-later
"""Random events of servers, under verified fio on three devices: no error, no wrong byte, and the
monitor does not grow.

`make events` runs two hundred such events on each of two kernels. EVENTS says how many, and EVENTS_SEED which.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import far
import pytest
from certificates import Authority
from servers import Server, free_port, nbd_server, nbdkit, qemu_nbd
from test_monitor import monitor_pid, resident_kb
from test_restart import state_of
from test_soak import descriptors, threads
from tool import attached, eventually, shell, sparse_file

pytestmark = [pytest.mark.netlink, pytest.mark.rare]
MIB = 1 << 20
EVENTS = int(os.environ.get("EVENTS") or 12)
SEED = int(os.environ.get("EVENTS_SEED") or 12)
WARM_UP = EVENTS // 5
GROWTH_KB = 2 << 10
# Far below the longest pause and closed window, neither of which may end a connection.
DEAD_PEER = 10
LONGEST = 40.0
# The servers in the network `far`: one in the clear, one over TLS.
PLAIN, SECRET = far.ADDRESS, "10.9.1.2"
# The time that a service manager waits between SIGTERM and SIGKILL; 90 s is the default of systemd's.
GRACE = 10.0
# Bytes that a server receives before its window is closed (tcp_rmem): less than fio has in flight.
SMALL_WINDOW = "4096 65536 131072"
# Small requests and large ones. Each block has a header with the run's seed, so that an old one is wrong.
FIO_MIB = 64
FIO = (
    "fio --name=verified --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bssplit=4k/60:64k/30:1m/10"
    f" --size={FIO_MIB}m --rate_iops=600 --randrepeat=0 --serialize_overlap=1"
    " --verify=crc32c --verify_interval=4k --do_verify=1 --verify_fatal=1"
)


@dataclass
class Site:
    """A server that can be started again at its place, the device attached to it, and the events that it may meet."""

    device: str
    target: str
    serve: Callable[[], AbstractContextManager[Server]]
    events: tuple[Event, ...]
    address: str = ""  # in the network `far`, which has a link that can be cut
    trust: dict[str, str] = field(default_factory=dict)
    _running: ExitStack = field(default_factory=ExitStack)

    def start(self) -> Server:
        self._running.close()
        return self._running.enter_context(self.serve())

    def stop(self) -> None:
        self._running.close()

    def requests(self) -> int:
        """Reads and writes that the device has done (Documentation/block/stat.rst)."""
        fields = Path(f"/sys/block/{self.device}/stat").read_text().split()
        return int(fields[0]) + int(fields[4])

    def see_it_run(self) -> None:
        wanted = self.requests() + 20
        eventually(lambda: self.requests() >= wanted, 120)


Event = Callable[[Site, Server, float], Server]


def kill(site: Site, server: Server, seconds: float) -> Server:
    server.kill()
    time.sleep(seconds / 8)
    return site.start()


def polite_stop(site: Site, server: Server, seconds: float) -> Server:
    server.stop()
    end = time.monotonic() + GRACE
    while not server.has_ended and time.monotonic() < end:
        time.sleep(0.1)
    return kill(site, server, seconds)


def pause(_site: Site, server: Server, seconds: float) -> Server:
    server.pause()
    time.sleep(seconds)
    server.resume()
    return server


def closed_window(site: Site, server: Server, seconds: float) -> Server:
    """The server reads nothing until its window is closed, and then for as long again."""
    server.pause()
    # Outside of the area of fio's writes, because fio may only be reading now.
    flood = subprocess.Popen(
        f"dd if=/dev/zero of=/dev/{site.device} bs=8M count=1 seek={FIO_MIB // 8} oflag=direct".split(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually(lambda: "timer:(persist" in shell(f"ss -Htno dport = :{server.place[1]}"), 30)
        time.sleep(max(seconds, DEAD_PEER + 5))
    finally:
        server.resume()
    errors = flood.communicate(timeout=120)[1]
    assert flood.returncode == 0, errors
    return server


def cut_link(site: Site, server: Server, seconds: float) -> Server:
    """No FIN or RST arrives: the server's address is away for a while."""
    far.cut_link(site.address)
    time.sleep(seconds)
    far.heal_link(site.address)
    return server


@pytest.fixture
def network() -> Iterator[str]:
    """A network for two servers, each with an address that can be taken away without the other's; all windows small."""
    with far.network(PLAIN, SECRET) as name:
        before = shell("sysctl -n net.ipv4.tcp_rmem").strip()
        for prefix in ("", f"ip netns exec {name} "):
            shell(f"{prefix}sysctl -q net.ipv4.tcp_rmem='{SMALL_WINDOW}'")
        yield name
        shell(f"sysctl -q net.ipv4.tcp_rmem='{before}'")


def sites(folder: Path, namespace: str) -> list[Site]:
    images = [sparse_file(folder / name, (FIO_MIB + 8) * MIB) for name in ("nbdkit", "nbd-server", "qemu-nbd")]
    ports = [free_port() for _ in images]
    certificates = Authority(folder / "authority").issue(folder / "tls", "server", alternatives=f"IP:{SECRET}")
    tls = f"tls-creds-x509,id=tls0,endpoint=server,verify-peer=no,dir={certificates}"
    return [
        # No regular stop: nbdkit then refuses a request that it gets, and the kernel fails it (LIMITS).
        Site(
            "nbd0",
            f"{PLAIN}:{ports[0]}",
            lambda: nbdkit(
                "--threads=1", "file", f"file={images[0]}", port=ports[0], address=PLAIN, namespace=namespace
            ),
            (kill, pause, closed_window, cut_link),
            PLAIN,
        ),
        Site(
            "nbd1",
            f"nbd://127.0.0.1:{ports[1]}/disk",
            lambda: nbd_server({"disk": str(images[1])}, extra="flush = true", port=ports[1]),
            (kill, polite_stop, pause, closed_window),
        ),
        Site(
            "nbd2",
            f"nbds://{SECRET}:{ports[2]}",
            lambda: qemu_nbd(
                str(images[2]), "--object", tls, "--tls-creds", "tls0",
                port=ports[2], address=SECRET, namespace=namespace,
            ),
            (kill, polite_stop, pause, closed_window, cut_link),
            SECRET,
            {"tls_ca": str(certificates / "ca-cert.pem")},
        ),
    ]  # fmt: skip


class Storm:
    """Random events, on all sites at once, until there were so many."""

    def __init__(self, count: int) -> None:
        self.happened: Counter[str] = Counter()
        self.failures: list[str] = []
        self._left = count
        self._lock = threading.Lock()

    def strike(self, site: Site, server: Server, chance: random.Random) -> None:
        """In a thread of each site."""
        try:
            while (event := self._take(site, chance)) is not None:
                time.sleep(chance.random() * 2)
                began = time.monotonic()
                # Most are short, which meets more states; some are as long as allowed.
                server = event(site, server, chance.random() ** 3 * LONGEST)
                over = time.monotonic()
                site.see_it_run()
                again = time.monotonic() - over
                print(
                    f"{site.device} {event.__name__}: {over - began:.1f} s, runs again after {again:.1f} s", flush=True
                )
        except BaseException as error:  # it is the thread's end, and the test's failure
            self.failures.append(f"{site.device}: {type(error).__name__}: {error}; {state_of(site.device)}")

    def _take(self, site: Site, chance: random.Random) -> Event | None:
        with self._lock:
            if not self._left or self.failures:
                return None
            self._left -= 1
            event = chance.choice(site.events)
            self.happened[f"{site.device} {event.__name__}"] += 1
            return event

    @property
    def total(self) -> int:
        return sum(self.happened.values())


class Verified:
    """fio on a device or file, over and over: it writes all of it and reads it again, until the context ends."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.passes = 0
        self.failures: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._over.is_set() and not self.failures:
            command = [*FIO.split(), f"--filename={self.path}"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode or "verify:" in done.stderr:
                self.failures.append(f"{self.path}: fio ended with {done.returncode}: {done.stdout} {done.stderr}")
            self.passes += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join(180)
            if self._thread.is_alive():
                self.failures.append(f"{self.path}: a request hangs")


@pytest.mark.timeout(300 + 40 * EVENTS)
def test_no_event_of_a_server_costs_an_error_or_a_byte(tmp_path: Path, network: str) -> None:
    places = sites(tmp_path, network)
    works = [Verified(f"/dev/{site.device}") for site in places]
    storm = Storm(EVENTS)
    with ExitStack() as stack:
        # Its threads live until all is over: nbdkit 1.32 in the foreground ends with the thread that has started it.
        pool = stack.enter_context(ThreadPoolExecutor(len(places)))
        for site in places:
            stack.callback(site.stop)
        running = [site.start() for site in places]
        for site in places:
            stack.enter_context(attached(site.target, site.device, dead_peer=DEAD_PEER, on_loss=600, **site.trust))
        for work in works:
            stack.enter_context(work.running())
        for site in places:
            site.see_it_run()
        pid = monitor_pid()
        strikes = [
            pool.submit(storm.strike, site, server, random.Random(SEED + number))
            for number, (site, server) in enumerate(zip(places, running, strict=True))
        ]
        eventually(lambda: storm.total >= WARM_UP or storm.failures, 40 * EVENTS)
        early = resident_kb(pid), descriptors(pid), threads(pid)
        wait(strikes)
        assert storm.failures == []
        eventually(lambda: {state_of(site.device) for site in places} == {"connected"})
        eventually(lambda: threads(pid) <= early[2])
        late = resident_kb(pid), descriptors(pid), threads(pid)
        failures = [failure for work in works for failure in work.failures]
        assert failures == []
        assert monitor_pid() == pid
    assert [failure for work in works for failure in work.failures] == []
    print(f"seed {SEED}, {storm.total} events: {dict(sorted(storm.happened.items()))}")
    print(f"passes of fio: {[work.passes for work in works]}")
    print(f"monitor: kB, descriptors, threads {early} after {WARM_UP} events, {late} at the end")
    assert late[0] - early[0] <= GROWTH_KB
    assert late[1] <= early[1] + 4
