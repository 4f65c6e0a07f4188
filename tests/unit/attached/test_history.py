# SPDX-License-Identifier: GPL-2.0-or-later
"""The counters of an attachment never run backwards, and outlast the monitor."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import NBD0, Host, pretend
from hypothesis import given
from hypothesis import strategies as st

from nbdattach.attached import history, state
from nbdattach.attached.history import History
from nbdattach.attached.state import Record


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return pretend(tmp_path, monkeypatch)


RECORD = Record(
    tag="t", target="nbd://db1", export="", backend="netlink", connections=1, since="", kernel_pid=1, id="id"
)  # fmt: skip
STEPS = ("lose", "recover", "fail")


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.floats(0, 1e6))))
def test_counters_never_run_backwards(steps: list[tuple[str, float]]) -> None:
    now, one = 0.0, History("id")
    for step, seconds in steps:
        before, now = one, now + seconds
        one = getattr(one, step)(now)
        assert one.reconnects >= before.reconnects
        assert one.seconds_away(now) >= before.seconds_away(now) - 1e-6


def test_an_outage_counts_once_however_often_it_is_reported() -> None:
    one = History("id").lose(10).lose(12).fail(13).recover(15).recover(20)
    assert (one.reconnects, one.away, one.failed_at) == (1, 5, 13)


def test_the_next_monitor_goes_on_with_it(host: Host) -> None:
    host.attach()
    history.save(NBD0, History(RECORD.id).lose(10))
    assert history.load(NBD0, RECORD).recover(12) == History(RECORD.id, reconnects=1, away=2)


def test_another_attachment_and_a_broken_file_begin_anew(host: Host) -> None:
    history.save(NBD0, History("another", reconnects=9))
    assert history.load(NBD0, RECORD) == History(RECORD.id)
    host.write("nbd0.json.history", "{")
    assert history.load(NBD0, RECORD) == History(RECORD.id)


def test_it_goes_with_the_record(host: Host) -> None:
    history.save(NBD0, History(RECORD.id, reconnects=9))
    state.forget(NBD0)
    assert history.load(NBD0, RECORD) == History(RECORD.id)
