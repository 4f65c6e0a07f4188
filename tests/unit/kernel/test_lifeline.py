# SPDX-License-Identifier: GPL-2.0-or-later
"""When the worker of an attachment ends it: one of its connections has ended, or its server owes an answer for long."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest
from loopback import Opened, cut_off, each_kind, eventually, fill, tcp, unix

from nbdattach.kernel.lifeline import Lifeline


@each_kind
def test_connections_that_live_are_left_alone(pair: Opened) -> None:
    with pair() as (_, one, _one), pair() as (_, other, _other):
        assert Lifeline([one.fileno(), other.fileno()], dead_peer=0.001).why_broken() == ""


@each_kind
def test_the_end_of_one_of_several_is_the_end_of_all(pair: Opened) -> None:
    """The kernel would let requests that were sent over it wait for a week, because it gets no new connection."""
    with pair() as (_, one, _one), pair() as (_, other, _other):
        lifeline = Lifeline([one.fileno(), other.fileno()], dead_peer=30)
        other.shutdown(socket.SHUT_RDWR)  # as the driver does with one that has ended
        eventually(lambda: bool(lifeline.why_broken()))
        assert lifeline.why_broken() == "one of its connections has ended"


def test_a_server_behind_a_cut_link_is_gone() -> None:
    with tcp() as (_, kernels, theirs):
        lifeline = Lifeline([kernels.fileno()], dead_peer=0.5)
        cut_off(theirs)
        kernels.sendall(b"request")
        eventually(lambda: bool(lifeline.why_broken()))
        assert lifeline.why_broken() == "its server has not answered for 0.5 s"


def test_a_server_that_reads_nothing_for_long_is_not_gone() -> None:
    with tcp() as (_, kernels, _theirs):
        lifeline = Lifeline([kernels.fileno()], dead_peer=0.5)
        fill(kernels)
        for _ in range(40):
            assert lifeline.why_broken() == ""
            time.sleep(0.05)


@pytest.mark.parametrize(("dead_peer", "pause"), [(1, 0.25), (30, 7.5), (3600, 10)])
def test_it_looks_several_times_within_dead_peer(dead_peer: float, pause: float) -> None:
    with unix() as (_, kernels, _theirs):
        assert Lifeline([kernels.fileno()], dead_peer).pause == pause


def test_the_descriptors_stay_the_callers() -> None:
    with unix() as (_, kernels, theirs), contextlib.suppress(BlockingIOError):
        lifeline = Lifeline([kernels.fileno()], 30)
        del lifeline
        kernels.sendall(b"still there")
        assert theirs.recv(20) == b"still there"
