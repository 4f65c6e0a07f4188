# SPDX-License-Identifier: GPL-2.0-or-later
"""Decisions about an outage, from times and facts only."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdattach.monitor.outage import FIRST_PAUSE, MAX_PAUSE, Outage, Terms, pause_after

pytestmark = pytest.mark.once
ages = st.floats(0, allow_nan=False)
moments = st.floats(0, 1e9)
DEFAULT = Terms(on_loss=300, dead_peer=30, connect_timeout=30)
FOREVER = Terms(on_loss=None, dead_peer=30, connect_timeout=30)
FAIL = Terms(on_loss=0, dead_peer=30, connect_timeout=30)


def outage(terms: Terms = DEFAULT, began: float = 1000.0) -> Outage:
    return Outage(terms, began, "2026-01-02T03:04:05Z")


@pytest.mark.parametrize(
    ("age", "pause"), [(0, 0.25), (1, 0.25), (20, 0.25), (80, 1), (240, 3), (400, 5), (1e9, 5), (math.inf, 5)]
)
def test_the_longer_a_server_is_away_the_longer_is_the_pause(age: float, pause: float) -> None:
    assert pause_after(age) == pytest.approx(pause)


@given(ages, ages)
def test_pauses_grow_within_their_limits(one: float, other: float) -> None:
    shorter, longer = sorted((one, other))
    assert 0 < FIRST_PAUSE <= pause_after(shorter) <= pause_after(longer) <= MAX_PAUSE


def test_a_server_that_is_back_is_found_within_a_small_share_of_the_time_it_was_away() -> None:
    for age, later in itertools.pairwise(range(0, 3600, 5)):
        assert pause_after(age) <= max(0.25, later / 50)


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_pauses_of_many_devices_differ_a_little(chance: float) -> None:
    assert outage(FOREVER).pause(1080, chance) == pytest.approx(0.8 + 0.4 * chance)


@given(moments, st.floats(0, 1))
def test_no_try_begins_after_requests_were_to_fail(later: float, chance: float) -> None:
    one = outage()
    one.lose(1000)
    assert one.pause(1000 + later, chance) <= one.until_failing(1000 + later)
    assert one.dial_within(1000 + later) <= max(0.01, one.until_failing(1000 + later))


# -- when requests fail ------------------------------------------------------------------------------------------------


@given(moments)
def test_requests_never_fail_before_a_connection_is_dead(later: float) -> None:
    assert outage(FAIL).until_failing(1000 + later) == math.inf


@given(moments)
def test_requests_that_wait_for_ever_never_fail(later: float) -> None:
    one = outage(FOREVER)
    one.lose(1000)
    assert one.until_failing(1000 + later) == math.inf


def test_requests_fail_when_on_loss_has_passed_since_the_connection_died() -> None:
    one = outage()
    one.lose(1010)
    one.lose(1200)  # the next one does not prolong it
    assert [one.until_failing(now) for now in (1010, 1100, 1310, 2000)] == [300, 210, 0, 0]
    one.failing = True
    assert one.until_failing(1310) == math.inf


# -- silence -----------------------------------------------------------------------------------------------------------


def test_silent_connections_are_cut_when_the_server_answers_no_other_and_on_loss_begins_with_dead_peer() -> None:
    one = outage()
    assert one.give_up_silent(silence=2, now=1002)
    assert one.died == 1030


def test_where_requests_are_to_fail_a_silent_connection_is_not_lost_before_dead_peer() -> None:
    one = outage(FAIL)
    assert not one.give_up_silent(silence=29, now=1029)
    assert one.until_failing(1029) == math.inf
    assert one.give_up_silent(silence=30, now=1030)
    assert one.until_failing(1030) == 0


def test_a_connection_that_is_silent_beside_a_dead_one_is_cut_and_requests_wait_no_longer_for_that() -> None:
    """Requests that it holds would not fail with the others otherwise, but when TCP gives it up."""
    one = outage()
    one.lose(1000)
    assert one.give_up_silent(silence=100, now=1100)
    assert one.died == 1000


# -- how long a try takes ----------------------------------------------------------------------------------------------


def test_a_try_has_more_time_the_longer_the_server_is_away_and_never_more_than_connect_timeout() -> None:
    one = outage(FOREVER)
    assert [one.dial_within(now) for now in (1000, 1020, 1060, 5000)] == [3, 10, 30, 30]


def test_tcp_has_several_round_trips_for_a_try() -> None:
    one = outage()
    assert [one.connect_within(trip, 1000) for trip in (0.001, 0.4)] == [0.5, 2.0]
    assert one.connect_within(0.001, 1400) == 5


def test_an_outage_that_only_seemed_to_be_over_goes_on_and_is_told_again() -> None:
    one = outage()
    one.lose(1000)
    one.told = True
    again = one.again()
    assert (again.began, again.died, again.told, again.resumed) == (1000, 1000, False, True)


def test_a_server_is_hopeless_after_a_few_useless_connections_or_once_it_is_stuck() -> None:
    """That takes more connections if the server ended them, because a server that restarts does that, too."""
    ended, silent, stuck = outage(), outage(), outage()
    for one in (ended, silent):
        one.lose(1000)
    seen = []
    for _ in range(4):
        for one in (ended, silent):
            one.gain()
        silent.cut_silent()
        for one in (ended, silent):
            one.lose(1010)
        seen.append((ended.is_hopeless, silent.is_hopeless))
    assert seen == [(False, False), (False, True), (False, True), (True, True)]
    stuck.stuck = True
    assert stuck.is_hopeless
    for one in (ended, silent, stuck):  # the requests have failed since
        one.start_counting()
        assert not one.is_hopeless
    for one in (ended, silent, stuck):
        one.keep(has_served=True)
        assert not one.is_hopeless


def test_an_outage_right_after_another_one_is_a_new_one_but_for_longer_pauses() -> None:
    """Another connection serves meanwhile, and the server may end each new one at once."""
    one = outage()
    one.lose(1000)
    pauses = []
    for _ in range(12):
        one = one.next(2000, "2026-01-02T04:00:00Z")
        assert one.pause(2000, 0.5) == FIRST_PAUSE  # no connection is alive
        one.lives = True
        assert (one.began, one.since, one.died, one.resumed) == (2000, "2026-01-02T04:00:00Z", None, True)
        pauses.append(one.pause(2000, 0.5))
    assert pauses[:6] == [0.5, 1, 2, 4, 5, 5] and pauses[-1] == 5


def test_only_a_connection_that_was_lost_and_had_served_nothing_counts_as_fruitless() -> None:
    one = outage()
    one.lose(1000)
    assert one.fruitless == 0  # it was there before the outage
    one.gain()
    one.keep(has_served=False)
    assert one.fruitless == 0  # it may be silent, and recover
    one.lose(1010)
    one.lose(1011)
    assert one.fruitless == 1
    one.gain()
    one.lose(1020)
    assert one.fruitless == 2
    one.gain()
    one.keep(has_served=True)
    one.lose(1030)
    assert (one.fruitless, one.died) == (0, 1030)


@given(moments)
def test_no_request_fails_while_a_connection_is_alive(later: float) -> None:
    one = outage()
    one.lose(1000)
    one.keep(has_served=False)
    assert one.until_failing(1000 + later) == math.inf
    one.lose(1000 + later)
    assert one.until_failing(1000 + later) == pytest.approx(max(0, 300 - later), abs=1e-6)


def test_a_silent_connection_is_not_cut_before_dead_peer_if_requests_would_fail_sooner() -> None:
    one = outage()
    one.lose(1000)
    one.keep(has_served=False)
    assert one.give_up_silent(silence=2, now=1100)  # there is time for another one
    assert not one.give_up_silent(silence=2, now=1290)
    assert not one.give_up_silent(silence=2, now=1400)
    assert one.give_up_silent(silence=30, now=1400)


def test_requests_fail_again_when_a_server_that_came_back_too_late_dies_unserved() -> None:
    """The driver waits by itself when it has all its connections, so the monitor must tell it again."""
    one = outage()
    one.lose(1000)
    one.failing = True
    assert one.again().until_failing(1310) == 0


def test_a_server_is_asked_at_least_once_a_second_and_more_often_at_first() -> None:
    one = outage(FOREVER)
    ages = (0, 1, 2, 4, 6, 8, 400, 1e6)
    assert [one.between_probes(1000 + age) for age in ages] == [0.25, 0.25, 0.25, 0.5, 0.75, 0.8, 0.8, 0.8]


@given(moments)
def test_no_wait_for_a_server_goes_past_the_moment_when_requests_fail(later: float) -> None:
    one = outage()
    one.lose(1000)
    assert one.between_probes(1000 + later) <= one.until_failing(1000 + later)


def test_status_is_told_no_more_than_once_a_second() -> None:
    one = outage()
    assert one.may_say(1000)
    one.said = 1000
    assert not one.may_say(1000.9)
    assert one.may_say(1001)
