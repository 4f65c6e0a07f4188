# SPDX-License-Identifier: GPL-2.0-or-later
"""The netlink backend without an answer of the kernel; the kernel's own answers are in the guest tests."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import cast

import pytest

from nbdattach.backends.base import Job
from nbdattach.backends.by_netlink import _connect
from nbdattach.device import Device
from nbdattach.errors import KernelRefused
from nbdattach.kernel import netlink

JOB = cast(
    Job,
    SimpleNamespace(
        shape=SimpleNamespace(size=1 << 20, block_size=512, flags=1),
        options=SimpleNamespace(whole_io_timeout=0),
        sockets=[],
        contested=False,
        tag="tag",
    ),
)


def failing(error: int) -> netlink.Family:
    def connect(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    return cast(netlink.Family, SimpleNamespace(connect=connect))


def test_what_the_kernel_refused_was_not_done() -> None:
    with pytest.raises(KernelRefused, match="not permitted"):
        _connect(failing(errno.EPERM), Device(0), JOB)


def test_an_answer_for_which_the_kernel_had_no_memory_is_no_refusal() -> None:
    """The device may be attached; `attach` looks, and undoes it."""
    with pytest.raises(OSError, match="buffer space") as lost:
        _connect(failing(errno.ENOBUFS), Device(0), JOB)
    assert lost.value.errno == errno.ENOBUFS
