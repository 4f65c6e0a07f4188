# SPDX-License-Identifier: GPL-2.0-or-later
"""The metrics, as the parsers of Prometheus's own client read them: OpenMetrics, and the older format."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_render import ATTACHED, HOSTILE

from nbdattach.attached.history import History
from nbdattach.cli.openmetrics import Measured, text

pytestmark = pytest.mark.once
OPENMETRICS, OLDER = "prometheus_client.openmetrics.parser", "prometheus_client.parser"


def families(found: str, parser: str = OPENMETRICS) -> Iterator[Any]:
    """Imported here, because not every interpreter that collects these tests has the library."""
    yield from importlib.import_module(parser).text_string_to_metric_families(found)


AWAY = History("id", reconnects=2, away=10.0, lost_at=100.0, failed_at=104.0)


def measured(history: History | None = None, under_way: int = 0, **changes: object) -> Measured:
    return Measured(replace(ATTACHED, **changes), under_way, history, now=105.5)  # type: ignore[arg-type]


def samples(found: str, parser: str = OPENMETRICS) -> dict[tuple[str, str], float]:
    """By name and state."""
    return {
        (sample.name, sample.labels.get("state", "")): sample.value
        for family in families(found, parser)
        for sample in family.samples
    }


def test_a_device_that_is_away() -> None:
    found = text([measured(AWAY, 7, state="reconnecting")], monitor=True)
    for parser in (OPENMETRICS, OLDER):
        assert samples(found, parser) == {
            ("nbdattach_monitor_up", ""): 1,
            ("nbdattach_device_info", ""): 1,
            ("nbdattach_device_state", "connected"): 0,
            ("nbdattach_device_state", "reconnecting"): 1,
            ("nbdattach_device_state", "lost"): 0,
            ("nbdattach_device_state", "unknown"): 0,
            ("nbdattach_device_size_bytes", ""): 1 << 30,
            ("nbdattach_device_inflight_requests", ""): 7,
            ("nbdattach_device_reconnects_total", ""): 2,
            ("nbdattach_device_away_seconds_total", ""): 15.5,
            ("nbdattach_device_last_error_age_seconds", ""): 1.5,
        }


def test_a_device_without_a_monitor_has_no_counters() -> None:
    names = {name for name, _ in samples(text([measured(tag=None)], monitor=False))}
    assert not [name for name in names if name.endswith("_total") or "error" in name]


def test_families_have_their_units_and_types() -> None:
    found = {family.name: family for family in families(text([measured(AWAY)], True))}
    assert {family.unit for name, family in found.items() if "seconds" in name} == {"seconds"}
    assert found["nbdattach_device_size_bytes"].unit == "bytes"
    assert {name for name, family in found.items() if family.type == "counter"} == {
        "nbdattach_device_reconnects",
        "nbdattach_device_away_seconds",
    }


def test_only_types_that_the_older_format_has() -> None:
    """node_exporter's textfile collector refuses a file with any other."""
    lines = [line.split() for line in text([measured(AWAY)], True).splitlines() if line.startswith("# TYPE")]
    assert {words[3] for words in lines} == {"gauge", "counter"}


def test_nothing_attached_and_nothing_known() -> None:
    assert text([], monitor=None) == "# EOF"


@given(st.text())
def test_any_tag_comes_out_as_it_is(tag: str) -> None:
    (seen,) = (
        sample.labels["tag"]
        for family in families(text([measured(tag=tag)], None))
        for sample in family.samples
        if family.name == "nbdattach_device_size_bytes"
    )
    assert seen == tag.encode(errors="replace").decode()


def test_a_hostile_name_of_an_export_adds_no_line() -> None:
    honest, hostile = (text([measured(AWAY, export=name)], True) for name in ("disk", HOSTILE))
    assert hostile.count("\n") == honest.count("\n")
    assert samples(hostile) == samples(honest)
    hostile.encode()
