# SPDX-License-Identifier: GPL-2.0-or-later
"""The time of day as our JSON tells it."""

from __future__ import annotations

import datetime
import re

import pytest

from nbdattach.clock import now, seconds_since


@pytest.mark.parametrize("ahead", [0.0, 5.0, 3600.0])
def test_a_time_is_rfc_3339_in_utc(ahead: float) -> None:
    text = now(ahead)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text, re.ASCII)
    told = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
    wanted = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead)
    assert abs((told - wanted).total_seconds()) < 3


@pytest.mark.parametrize(("ahead", "least", "most"), [(0, 0, 3), (-60, 60, 63), (-86400, 86400, 86403)])
def test_the_age_of_a_time_is_told(ahead: float, least: float, most: float) -> None:
    assert least <= seconds_since(now(ahead)) <= most


def test_what_is_still_to_come_has_no_age() -> None:
    assert seconds_since(now(60)) == 0.0


def test_a_time_without_a_zone_was_never_told() -> None:
    assert seconds_since("2026-01-02T03:04:05") == 0.0


@pytest.mark.parametrize("text", ["", "soon", "2026-13-01T00:00:00Z", "\x1b"])
def test_what_is_no_time_has_no_age(text: str) -> None:
    assert seconds_since(text) == 0.0
