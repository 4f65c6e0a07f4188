# SPDX-License-Identifier: GPL-2.0-or-later
"""The time of day in our JSON."""

from __future__ import annotations

import datetime
import re
import time

import pytest

from nbdattach.clock import boot_time, now


@pytest.mark.parametrize("ahead", [0.0, 5.0, 3600.0])
def test_a_time_is_rfc_3339_in_utc(ahead: float) -> None:
    text = now(ahead)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text, re.ASCII)
    told = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
    wanted = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead)
    assert abs((told - wanted).total_seconds()) < 3


def test_ages_are_told_by_a_clock_that_nobody_sets() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= boot_time() <= time.clock_gettime(time.CLOCK_BOOTTIME)
