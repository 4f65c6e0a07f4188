# SPDX-License-Identifier: GPL-2.0-or-later
"""The worker's ioctls: their order, the undoing of each failure, and that the fake behaves like the driver.

The tests of `nbd_contract` run here on the fake; with NBDATTACH_DEVICE=/dev/nbdN, as root, on the real driver.
"""

from __future__ import annotations

import errno
import inspect
import itertools
import os
from collections.abc import Iterator

import pytest
from fake_kernel import FLAG_READ_ONLY, FakeKernel
from nbd_contract import *  # noqa: F403 - the contract's tests
from nbd_contract import Fake, Machine, Peer, Real, elsewhere, peers

from nbdattach.device import parse_device
from nbdattach.kernel import ioctl, leftovers, worker
from nbdattach.kernel.worker import StepFailed

FLAGS = 0x0105
CLEARED = [("NBD_CLEAR_QUE", 0), ("NBD_CLEAR_SOCK", 0), ("BLKRRPART", 0)]


@pytest.fixture
def machine() -> Machine:
    device = os.environ.get("NBDATTACH_DEVICE")
    return Real(parse_device(device)) if device else Fake()


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    fake = FakeKernel()
    yield fake
    fake.close_all()


def set_up(kernel: FakeKernel, made: list[Peer], flags: int = FLAGS, block_size: int = 512, blocks: int = 2048) -> int:
    """The open node."""
    node = kernel.open()
    worker.set_up(kernel, node, [peer.fd for peer in made], block_size, blocks, flags)
    return node


def fails(kernel: FakeKernel, made: list[Peer], flags: int = FLAGS) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        set_up(kernel, made, flags)
    return caught.value


# -- row 9: setting up -------------------------------------------------------------------------------------------------


@pytest.mark.row(9)
@pytest.mark.parametrize("count", [1, 2, 16])
def test_ioctls_come_in_their_order(kernel: FakeKernel, count: int) -> None:
    with peers(count) as made:
        set_up(kernel, made, FLAGS, 4096, 256)
        assert kernel.calls == [
            *(("NBD_SET_SOCK", peer.fd) for peer in made),
            ("NBD_SET_BLKSIZE", 4096),
            ("NBD_SET_SIZE_BLOCKS", 256),
            ("NBD_SET_FLAGS", FLAGS),
        ]


@pytest.mark.row(9)
@pytest.mark.parametrize("blocks", [(1 << 31) - 1, 1 << 31, (1 << 54) - 1])
def test_number_of_blocks_is_handed_on_whole(kernel: FakeKernel, blocks: int) -> None:
    with peers() as made:
        set_up(kernel, made, blocks=blocks)
        assert ("NBD_SET_SIZE_BLOCKS", blocks) in kernel.calls


@pytest.mark.row(9)
@pytest.mark.parametrize(
    ("step", "done"),
    [
        ("NBD_SET_BLKSIZE", ["NBD_SET_SOCK", "NBD_SET_SOCK"]),
        ("NBD_SET_SIZE_BLOCKS", ["NBD_SET_SOCK", "NBD_SET_SOCK", "NBD_SET_BLKSIZE"]),
        ("NBD_SET_FLAGS", ["NBD_SET_SOCK", "NBD_SET_SOCK", "NBD_SET_BLKSIZE", "NBD_SET_SIZE_BLOCKS"]),
    ],
)
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM, errno.EIO, errno.ENOMEM, errno.EBUSY, errno.E2BIG])
def test_failed_step_is_named_and_undoes_the_rest(kernel: FakeKernel, step: str, done: list[str], number: int) -> None:
    kernel.fails[step] = number
    with peers(2) as made:
        failed = fails(kernel, made)
        assert (failed.step, failed.errno) == (step, number)
        assert kernel.steps == [*done, step, "NBD_CLEAR_QUE", "NBD_CLEAR_SOCK", "BLKRRPART"]
        assert all(peer.ended() for peer in made)


@pytest.mark.row(9)
@pytest.mark.parametrize("step", ["NBD_SET_BLKSIZE", "NBD_SET_SIZE_BLOCKS"])
def test_enotty_is_a_failure_of_any_other_step(kernel: FakeKernel, step: str) -> None:
    kernel.fails[step] = errno.ENOTTY
    with peers() as made:
        failed = fails(kernel, made)
        assert (failed.step, failed.errno) == (step, errno.ENOTTY)
        assert kernel.calls[-3:] == CLEARED


@pytest.mark.row(9)
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EPERM, errno.EINVAL, errno.ENOTTY])
def test_failure_at_the_first_socket_clears_nothing(kernel: FakeKernel, number: int) -> None:
    """The device is another task's, or we may do nothing to it at all."""
    kernel.fails["NBD_SET_SOCK"] = number
    with peers(2) as made:
        failed = fails(kernel, made)
        assert (failed.step, failed.errno) == ("NBD_SET_SOCK", number)
        assert kernel.calls == [("NBD_SET_SOCK", made[0].fd)]


@pytest.mark.row(9)
def test_device_that_another_task_sets_up_is_left_to_it(kernel: FakeKernel) -> None:
    with peers(2) as (theirs, ours):
        node = elsewhere(lambda: set_up(kernel, [theirs]))
        kernel.calls.clear()
        failed = fails(kernel, [ours])
        assert (failed.step, failed.errno) == ("NBD_SET_SOCK", errno.EBUSY)
        assert kernel.calls == [("NBD_SET_SOCK", ours.fd)]
        elsewhere(lambda: kernel.nbd_set_flags(node, FLAGS))
        assert theirs.has_client


@pytest.mark.row(9)
def test_failure_at_a_later_socket_clears_the_earlier_ones(kernel: FakeKernel) -> None:
    read, write = os.pipe()
    with peers() as made:
        node = kernel.open()
        with pytest.raises(StepFailed) as caught:
            worker.set_up(kernel, node, [made[0].fd, read], 512, 2048, FLAGS)
        assert (caught.value.step, caught.value.errno) == ("NBD_SET_SOCK", errno.ENOTSOCK)
        assert kernel.calls == [("NBD_SET_SOCK", made[0].fd), ("NBD_SET_SOCK", read), *CLEARED]
        assert made[0].ended()
    os.close(read)
    os.close(write)


@pytest.mark.row(9)
@pytest.mark.parametrize(
    ("flags", "read_only"), [(0x0001, False), (0x0105, False), (0x0003, True), (FLAG_READ_ONLY, True), (0xFFFF, True)]
)
def test_kernel_without_set_flags_is_told_read_only_by_blkroset(
    kernel: FakeKernel, flags: int, read_only: bool
) -> None:
    kernel.read_only = not read_only
    kernel.fails["NBD_SET_FLAGS"] = errno.ENOTTY
    with peers() as made:
        set_up(kernel, made, flags)
        assert kernel.calls[3:] == [("NBD_SET_FLAGS", flags), ("BLKROSET", read_only)]
        assert kernel.read_only is read_only


@pytest.mark.row(9)
@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTTY])
def test_failed_blkroset_is_named_and_undoes_the_rest(kernel: FakeKernel, number: int) -> None:
    kernel.fails = {"NBD_SET_FLAGS": errno.ENOTTY, "BLKROSET": number}
    with peers() as made:
        failed = fails(kernel, made, FLAG_READ_ONLY)
        assert (failed.step, failed.errno) == ("BLKROSET", number)
        assert kernel.calls[3:] == [("NBD_SET_FLAGS", FLAG_READ_ONLY), ("BLKROSET", True), *CLEARED]
        assert made[0].ended()


@pytest.mark.row(9)
def test_blkroset_is_not_asked_where_the_flags_were_taken(kernel: FakeKernel) -> None:
    with peers() as made:
        set_up(kernel, made, FLAG_READ_ONLY)
        assert "BLKROSET" not in kernel.steps


@pytest.mark.row(9)
def test_who_may_not_is_told_at_the_first_step(kernel: FakeKernel) -> None:
    kernel.admin = False
    with peers() as made:
        failed = fails(kernel, made)
        assert (failed.step, failed.errno) == ("NBD_SET_SOCK", errno.EPERM)
        assert kernel.steps == ["NBD_SET_SOCK"]


@pytest.mark.row(9)
def test_failure_while_undoing_hides_nothing(kernel: FakeKernel) -> None:
    kernel.fails = dict.fromkeys(("NBD_SET_FLAGS", "NBD_CLEAR_QUE", "NBD_CLEAR_SOCK", "BLKRRPART"), errno.EIO)
    with peers() as made:
        failed = fails(kernel, made)
        assert (failed.step, failed.errno) == ("NBD_SET_FLAGS", errno.EIO)
        assert kernel.calls[-3:] == CLEARED


def test_error_without_a_number_counts_as_0(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(*_: int) -> None:
        raise OSError("odd")

    monkeypatch.setattr(kernel, "nbd_set_flags", odd)
    monkeypatch.setattr(kernel, "nbd_do_it", odd)
    with peers() as made:
        failed = fails(kernel, made)
        assert (failed.step, failed.errno) == ("NBD_SET_FLAGS", 0)
        assert worker.serve(kernel, 0) == 0


# -- row 10: serving ---------------------------------------------------------------------------------------------------


@pytest.mark.row(10)
@pytest.mark.parametrize(
    ("number", "ended"),
    [
        (errno.EPIPE, 0),
        (errno.EINTR, errno.EINTR),
        (errno.ETIMEDOUT, errno.ETIMEDOUT),
        (errno.EINVAL, errno.EINVAL),
        (errno.EBUSY, errno.EBUSY),
        (errno.EIO, errno.EIO),
        (errno.ENOTCONN, errno.ENOTCONN),
    ],
)
def test_end_of_do_it_is_told_but_for_epipe(kernel: FakeKernel, number: int, ended: int) -> None:
    kernel.fails["NBD_DO_IT"] = number
    with peers() as made:
        node = set_up(kernel, made)
        kernel.calls.clear()
        assert worker.serve(kernel, node) == ended
        assert kernel.calls == [("NBD_DO_IT", 0), *CLEARED]
        assert made[0].ended()


@pytest.mark.row(10)
def test_detached_device_is_cleared(kernel: FakeKernel) -> None:
    with peers() as made:
        node = set_up(kernel, made)
        kernel.calls.clear()
        kernel.nbd_disconnect(node)
        assert worker.serve(kernel, node) == 0
        assert kernel.calls == [("NBD_DISCONNECT", 0), ("NBD_DO_IT", 0), *CLEARED]
        assert made[0].goodbyes == 1


# -- clearing ----------------------------------------------------------------------------------------------------------

CLEARS = ("NBD_CLEAR_QUE", "NBD_CLEAR_SOCK", "BLKRRPART")


@pytest.mark.row(10)
@pytest.mark.parametrize("failing", [one for n in range(4) for one in itertools.combinations(CLEARS, n)], ids="+".join)
@pytest.mark.parametrize("end", [0, errno.EPIPE, errno.EIO])
def test_clearing_goes_on_whatever_fails(kernel: FakeKernel, failing: tuple[str, ...], end: int) -> None:
    kernel.fails = dict.fromkeys(failing, errno.EINVAL)
    if end:
        kernel.fails["NBD_DO_IT"] = end
    with peers() as made:
        node = set_up(kernel, made)
        made[0].hang_up()
        kernel.calls.clear()
        assert worker.serve(kernel, node) == (end if end != errno.EPIPE else 0)
        assert kernel.calls == [("NBD_DO_IT", 0), *CLEARED]


def test_driver_without_partitions_is_cleared_without_complaint(kernel: FakeKernel) -> None:
    kernel.max_part = 0
    leftovers.clear(kernel, kernel.open())
    assert kernel.calls == CLEARED


def test_fake_has_the_names_and_parameters_of_the_real_one() -> None:
    for name, call in vars(FakeKernel).items():
        if name.startswith(("nbd_", "blk")):
            ours, theirs = inspect.signature(call), inspect.signature(getattr(ioctl, name))
            assert list(ours.parameters)[1:] == list(theirs.parameters), name
