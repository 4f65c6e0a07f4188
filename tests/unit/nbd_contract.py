# SPDX-License-Identifier: GPL-2.0-or-later
"""The ioctls of an nbd device, as tests that are the same for the real driver and for the fake.

A test module takes them in with `from nbd_contract import *` and says by a fixture `machine` which of the two it is:
`Fake`, or in a guest, as root and with the driver loaded, `Real`. They check the behaviour that the worker relies on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import eq
from typing import Any, Protocol, TypeVar

import pytest
from fake_kernel import DISCONNECT, FLAG_CAN_MULTI_CONN, FLAG_READ_ONLY, FakeKernel

from nbdattach.device import Device
from nbdattach.kernel import ioctl, leftovers, worker
from nbdattach.kernel.sysfs import Kernel

__all__ = [
    "test_another_task_is_turned_away_until_the_sockets_are_cleared",
    "test_anybody_may_clear_what_another_task_began",
    "test_attached_device_keeps_its_pid_until_it_is_closed",
    "test_block_size_that_is_none_is_refused",
    "test_clearing_an_idle_device_is_harmless",
    "test_connection_cut_by_the_server_ends_do_it_without_an_error",
    "test_device_is_free_for_the_next_after_the_worker",
    "test_device_serves_its_size_and_is_empty_afterwards",
    "test_device_that_is_served_is_not_served_twice",
    "test_disconnect_says_goodbye_on_each_connection",
    "test_driver_holds_the_socket_by_itself",
    "test_failed_set_up_leaves_the_device_to_the_next",
    "test_no_socket_is_refused",
    "test_no_sockets_no_do_it",
    "test_several_connections_need_the_servers_leave",
    "test_size_that_overflows_is_refused",
    "test_worker_undoes_what_the_driver_refused",
]

T = TypeVar("T")
SOON = 60.0
SIZE, BLOCK = 1 << 20, 512
HAS_FLAGS = 1


class Machine(Protocol):
    """An nbd device to try things on."""

    @property
    def kernel(self) -> Any:
        """The module `nbdattach.kernel.ioctl`, or one that behaves like it."""

    def open(self) -> int: ...

    def close(self, node: int) -> None: ...

    def pid(self) -> int | None: ...

    def size(self) -> int: ...

    def read_only(self) -> bool: ...


class Fake:
    def __init__(self) -> None:
        self.kernel = FakeKernel()

    def open(self) -> int:
        return self.kernel.open()

    def close(self, node: int) -> None:
        self.kernel.close(node)

    def pid(self) -> int | None:
        return self.kernel.pid

    def size(self) -> int:
        return self.kernel.capacity

    def read_only(self) -> bool:
        return self.kernel.read_only


class Real:
    """/dev/nbdN. Each attachment ends before the test does: a fixture cannot clean up after a thread in NBD_DO_IT."""

    kernel = ioctl

    def __init__(self, device: Device) -> None:
        self._device = device
        self._sysfs = Kernel(device)

    def open(self) -> int:
        return os.open(self._device.path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self, node: int) -> None:
        os.close(node)

    def pid(self) -> int | None:
        return self._sysfs.pid

    def size(self) -> int:
        return self._sysfs.size

    def read_only(self) -> bool:
        return self._sysfs.read_only


class Peer:
    """A server in the transmission phase: zeros for each read, hangs up at NBD_CMD_DISC. `fd` is the client's end."""

    def __init__(self) -> None:
        self._client, self._server = socket.socketpair()
        self.heard: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def fd(self) -> int:
        return self._client.fileno()

    def leave(self) -> None:
        """Closes the client's end, as the worker does: only the driver has it then."""
        self._client.close()

    def hang_up(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)

    def ended(self) -> bool:
        """Whether the client has hung up, or said goodbye, soon."""
        self._thread.join(SOON)
        return not self._thread.is_alive()

    @property
    def has_client(self) -> bool:
        return self._thread.is_alive()

    @property
    def goodbyes(self) -> int:
        return self.heard.count(DISCONNECT)

    def _serve(self) -> None:
        with self._server, contextlib.suppress(OSError):
            while len(request := self._server.recv(28, socket.MSG_WAITALL)) == 28:
                _, _, kind, cookie, _, length = struct.unpack(">IHHQQI", request)
                self.heard.append(request)
                if kind == 2:
                    return
                self._server.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie) + bytes(length if kind == 0 else 0))


@contextlib.contextmanager
def opened(machine: Machine) -> Iterator[int]:
    node = machine.open()
    try:
        yield node
    finally:
        machine.close(node)


@contextlib.contextmanager
def peers(count: int = 1) -> Iterator[list[Peer]]:
    made = [Peer() for _ in range(count)]
    try:
        yield made
    finally:
        for peer in made:
            peer.leave()
            with contextlib.suppress(OSError):
                peer.hang_up()
            assert peer.ended()


def set_up(machine: Machine, node: int, made: list[Peer], flags: int = HAS_FLAGS) -> None:
    worker.set_up(machine.kernel, node, [peer.fd for peer in made], BLOCK, SIZE // BLOCK, flags)


@contextlib.contextmanager
def served(machine: Machine, made: list[Peer], flags: int = HAS_FLAGS) -> Iterator[tuple[int, list[int]]]:
    """The device attached by a task of its own, as a worker does it: its node, and soon how `serve` ended.

    The kernel's pid is the number of that task.
    """
    ended: list[int] = []
    nodes: list[int] = []

    def work() -> None:
        with opened(machine) as node:
            set_up(machine, node, made, flags)
            for peer in made:
                peer.leave()
            nodes.append(node)
            ended.append(worker.serve(machine.kernel, node))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_for(lambda: machine.size() == SIZE or not thread.is_alive())
        assert machine.pid() == thread.native_id
        yield nodes[0], ended
    finally:
        for peer in made:
            with contextlib.suppress(OSError):
                peer.hang_up()
        thread.join(SOON)
        assert not thread.is_alive()


def wait_for(done: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not done():
        assert time.monotonic() < end
        time.sleep(0.001)


def elsewhere(call: Callable[[], T]) -> T:
    """`call()` in another task."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(SOON)


def refused(call: Callable[..., None], *args: int) -> int:
    """The errno of the call."""
    with pytest.raises(OSError) as caught:
        call(*args)
    return caught.value.errno or 0


# -- setting up --------------------------------------------------------------------------------------------------------


@pytest.mark.row(9)
def test_device_serves_its_size_and_is_empty_afterwards(machine: Machine) -> None:
    for flags in (HAS_FLAGS, HAS_FLAGS | FLAG_READ_ONLY, HAS_FLAGS):
        with peers() as made:
            with served(machine, made, flags) as (node, ended):
                assert machine.size() == SIZE
                assert machine.read_only() == bool(flags & FLAG_READ_ONLY)
                machine.kernel.nbd_disconnect(node)
                wait_for(partial(eq, ended, [0]))
            assert made[0].goodbyes == 1
        assert (machine.pid(), machine.size()) == (None, 0)


@pytest.mark.row(9)
def test_another_task_is_turned_away_until_the_sockets_are_cleared(machine: Machine) -> None:
    with opened(machine) as node, opened(machine) as other, peers(3) as (mine, theirs, more):
        machine.kernel.nbd_set_sock(node, mine.fd)
        set_sock = machine.kernel.nbd_set_sock
        assert elsewhere(lambda: refused(set_sock, other, theirs.fd)) == errno.EBUSY
        assert elsewhere(lambda: refused(set_sock, node, theirs.fd)) == errno.EBUSY
        set_sock(other, more.fd)
        leftovers.clear(machine.kernel, node)
        elsewhere(lambda: set_sock(other, theirs.fd))
        leftovers.clear(machine.kernel, other)


@pytest.mark.row(11)
def test_anybody_may_clear_what_another_task_began(machine: Machine) -> None:
    with opened(machine) as node, peers(2) as (mine, theirs):
        elsewhere(lambda: machine.kernel.nbd_set_sock(node, theirs.fd))
        machine.kernel.nbd_clear_sock(node)
        assert theirs.ended()
        machine.kernel.nbd_set_sock(node, mine.fd)


@pytest.mark.row(9)
@pytest.mark.parametrize("size", [1, 256, 511, 513, 1000, 3072, 1 << 20])
def test_block_size_that_is_none_is_refused(machine: Machine, size: int) -> None:
    with opened(machine) as node:
        assert refused(machine.kernel.nbd_set_blksize, node, size) == errno.EINVAL


@pytest.mark.row(9)
@pytest.mark.parametrize(("block", "blocks"), [(512, 1 << 54), (4096, 1 << 51), (512, (1 << 64) - 1)])
def test_size_that_overflows_is_refused(machine: Machine, block: int, blocks: int) -> None:
    with opened(machine) as node:
        machine.kernel.nbd_set_blksize(node, block)
        assert refused(machine.kernel.nbd_set_size_blocks, node, blocks) == errno.EINVAL
        machine.kernel.nbd_set_size_blocks(node, (1 << 63) // block - 1)


@pytest.mark.row(9)
def test_no_socket_is_refused(machine: Machine) -> None:
    read, write = os.pipe()
    with opened(machine) as node, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        assert refused(machine.kernel.nbd_set_sock, node, read) == errno.ENOTSOCK
        os.close(read)
        assert refused(machine.kernel.nbd_set_sock, node, read) == errno.EBADF
        assert refused(machine.kernel.nbd_set_sock, node, datagrams.fileno()) == errno.EINVAL
    os.close(write)


@pytest.mark.row(9)
def test_worker_undoes_what_the_driver_refused(machine: Machine) -> None:
    with opened(machine) as node, peers() as made:
        with pytest.raises(worker.StepFailed) as caught:
            worker.set_up(machine.kernel, node, [made[0].fd], 513, 1, HAS_FLAGS)
        assert (caught.value.step, caught.value.errno) == ("NBD_SET_BLKSIZE", errno.EINVAL)
        assert made[0].ended()
        assert (machine.pid(), machine.size()) == (None, 0)


@pytest.mark.row(9)
def test_failed_set_up_leaves_the_device_to_the_next(machine: Machine) -> None:
    with opened(machine) as node, peers() as made, pytest.raises(worker.StepFailed):
        worker.set_up(machine.kernel, node, [made[0].fd], 513, 1, HAS_FLAGS)
    with peers() as made, served(machine, made):
        assert machine.size() == SIZE


# -- serving -----------------------------------------------------------------------------------------------------------


@pytest.mark.row(10)
def test_no_sockets_no_do_it(machine: Machine) -> None:
    with opened(machine) as node:
        assert refused(machine.kernel.nbd_do_it, node) == errno.EINVAL


@pytest.mark.row(10)
def test_several_connections_need_the_servers_leave(machine: Machine) -> None:
    with opened(machine) as node, peers(2) as made:
        set_up(machine, node, made)
        assert worker.serve(machine.kernel, node) == errno.EINVAL
        assert all(peer.ended() for peer in made)


@pytest.mark.row(10)
def test_disconnect_says_goodbye_on_each_connection(machine: Machine) -> None:
    with peers(3) as made, served(machine, made, HAS_FLAGS | FLAG_CAN_MULTI_CONN) as (node, ended):
        machine.kernel.nbd_disconnect(node)
        wait_for(lambda: ended == [0])
        assert [peer.goodbyes for peer in made] == [1, 1, 1]


@pytest.mark.row(10)
def test_connection_cut_by_the_server_ends_do_it_without_an_error(machine: Machine) -> None:
    with peers() as made, served(machine, made) as (_, ended):
        made[0].hang_up()
        wait_for(lambda: ended == [0])


@pytest.mark.row(10)
def test_driver_holds_the_socket_by_itself(machine: Machine) -> None:
    """`served` has closed ours by now; the server still has its client."""
    with peers() as made, served(machine, made) as (node, ended):
        assert made[0].has_client
        assert ended == []
        machine.kernel.nbd_clear_sock(node)
        assert made[0].ended()
        wait_for(lambda: ended == [0])
        assert made[0].goodbyes == 0


@pytest.mark.row(10)
def test_device_that_is_served_is_not_served_twice(machine: Machine) -> None:
    with peers() as made, served(machine, made) as (_, ended), opened(machine) as other, peers() as late:
        assert refused(machine.kernel.nbd_do_it, other) == errno.EBUSY
        assert refused(machine.kernel.nbd_set_sock, other, late[0].fd) == errno.EBUSY
        assert (machine.size(), ended) == (SIZE, [])


@pytest.mark.row(11)
def test_attached_device_keeps_its_pid_until_it_is_closed(machine: Machine) -> None:
    with opened(machine), peers() as made:
        with served(machine, made) as (node, ended):
            pid = machine.pid()
            machine.kernel.nbd_disconnect(node)
            wait_for(lambda: ended == [0])
        assert machine.pid() == pid
    assert (machine.pid(), machine.size()) == (None, 0)


@pytest.mark.row(11)
def test_clearing_an_idle_device_is_harmless(machine: Machine) -> None:
    with opened(machine) as node:
        leftovers.clear(machine.kernel, node)
        machine.kernel.nbd_clear_que(node)
        machine.kernel.nbd_clear_sock(node)
        machine.kernel.nbd_disconnect(node)
    assert (machine.pid(), machine.size()) == (None, 0)


@pytest.mark.row(11)
def test_device_is_free_for_the_next_after_the_worker(machine: Machine) -> None:
    for _ in range(3):
        with peers() as made, served(machine, made) as (node, ended):
            machine.kernel.nbd_disconnect(node)
            wait_for(partial(eq, ended, [0]))
        assert (machine.pid(), machine.size()) == (None, 0)
