# SPDX-License-Identifier: GPL-2.0-or-later
"""The time of day as our JSON tells it."""

from __future__ import annotations

import datetime


def now(ahead: float = 0.0) -> str:
    """RFC 3339 in UTC, `ahead` seconds from now."""
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_since(moment: str) -> float:
    """How long ago `now` said that; 0.0 for what it never said."""
    try:
        age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(moment)
    except (ValueError, TypeError):
        return 0.0
    return max(0.0, age.total_seconds())
