# SPDX-License-Identifier: GPL-2.0-or-later
"""tests/bench: how its figures are judged by their aims, and that no aim is one that nothing can judge."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.once

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def figures() -> Iterator[ModuleType]:
    before = list(sys.path)
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("figures")
    sys.path[:] = before


@pytest.mark.parametrize(
    ("aim", "median_that_holds", "median_that_misses"),
    [("<= 1.5", 1.5, 1.51), (">= 2", 2.0, 1.99), ("< 1", 0.99, 1.0), ("> 1", 1.01, 1.0), ("<= 0", 0.0, 1.0)],
)
def test_aim_is_missed_by_the_median_alone(
    figures: ModuleType, aim: str, median_that_holds: float, median_that_misses: float
) -> None:
    def missed(median: float) -> list[str]:
        return list(figures.Row("x", "ms", "ours", {"ours": [-1e6, median, 1e6]}, {"ours": aim}).missed())

    assert missed(median_that_holds) == []
    assert len(missed(median_that_misses)) == 1


def test_ratio_is_judged_round_by_round(figures: ModuleType) -> None:
    """The machine became slower for both: the medians' ratio would be 20."""
    row = figures.Row("x", "ms", "ours", {"ours": [2, 20, 200], "its": [1, 1, 100]}, {"its": "<= 2"})
    assert list(row.missed()) == []
    row = figures.Row("x", "ms", "ours", {"ours": [3, 3, 300], "its": [1, 1, 100]}, {"its": "<= 2"})
    assert list(row.missed()) == ["x, against its: 3, aim <= 2"]


def test_aim_for_our_own_figure_is_not_judged_by_the_ratio(figures: ModuleType) -> None:
    row = figures.Row("x", "ms", "ours", {"ours": [79.0], "its": [1.0]}, {"its": "ours <= 80"})
    assert list(row.missed()) == []
    row = figures.Row("x", "ms", "ours", {"ours": [81.0], "its": [100.0]}, {"its": "ours <= 80"})
    assert list(row.missed()) == ["x, ms: 81, aim ours <= 80"]
    row = figures.Row("x", "M", "ours", {"ours": [300.0], "its": [400.0]}, {"ours": "ours <= 290", "its": "<= 1"})
    assert list(row.missed()) == ["x, M: 300, aim ours <= 290"]


@pytest.mark.parametrize("theirs", [[], [0.0]])
def test_aim_without_a_figure_is_missed(figures: ModuleType, theirs: list[float]) -> None:
    row = figures.Row("x", "ms", "ours", {"ours": [1.0] * len(theirs), "its": theirs}, {"its": "<= 2"})
    assert list(row.missed()) == ["x, against its: no figure, aim <= 2"]
    assert figures.table("title", [row])


def test_figure_that_an_error_made_infinite_is_missed_also_after_json(figures: ModuleType) -> None:
    row = figures.Row("x", "ms", "ours", {"ours": [float("inf")]}, {"ours": "<= 1000"})
    assert list(figures.Row.of(json.loads(json.dumps(asdict(row)))).missed()) == ["x, ms: inf, aim <= 1000"]


@pytest.mark.parametrize("aim", ["0", "(ours <= 80 ms)", "<=1", "1.5", "<= x", "= 1", "<= 1 ms"])
def test_aim_that_nothing_can_judge_is_refused(figures: ModuleType, aim: str) -> None:
    with pytest.raises(ValueError, match="no aim"):
        figures.Row("x", "ms", "ours", {"ours": []}, {"ours": aim})


def test_summary_names_each_missed_aim_or_none(figures: ModuleType) -> None:
    good = figures.Row("good", "ms", "ours", {"ours": [1.0], "its": [2.0]}, {"its": "<= 1", "other": ""})
    bad = figures.Row("bad", "ms", "ours", {"ours": [3.0], "its": [2.0]}, {"its": "<= 1"})
    assert figures.summary({"A": [good]}) == "Aims that were missed:\n  none"
    said = "Aims that were missed:\n  B: bad, against its: 1.5, aim <= 1"
    assert figures.summary({"A": [good], "B": [good, bad]}) == said


def test_table_shows_our_own_aim_once_and_rows_of_us_alone_beside_others(figures: ModuleType) -> None:
    both = figures.Row("b", "M", "ours", {"ours": [3.0], "x": [2.0], "y": [1.0]}, {"ours": "ours <= 9", "x": "<= 2"})
    alone = figures.Row("a", "MB", "ours", {"ours": [17.0, 19.0]}, {"ours": "<= 18"})
    _, _, first, second, third = figures.table("title", [both, alone]).splitlines()
    assert first.split() == ["b,", "M", "3.00", "x", "2.00", "1.50", "(1.50..1.50)", "<=", "2,", "ours", "<=", "9"]
    assert second.split() == ["y", "1.00", "3.00", "(3.00..3.00)"]
    assert third.split() == ["a,", "MB", "18.0", "(17.0..19.0)", "<=", "18"]


def test_each_part_is_measured(figures: ModuleType) -> None:
    """`part_of` names all parts but the last one."""
    contenders = ast.parse((BENCH / "contenders.py").read_text())
    (parts,) = (
        node.value
        for node in contenders.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PARTS"
    )
    listed = {node.value for node in ast.walk(parts) if isinstance(node, ast.Constant)}
    guest = ast.parse((BENCH / "in_guest.py").read_text())
    (chooser,) = (node for node in guest.body if isinstance(node, ast.FunctionDef) and node.name == "part_of")
    named = {node.value for node in ast.walk(chooser) if isinstance(node, ast.Constant)}
    assert listed - named == {"at-once", "tls", "tls-chacha20"}


def test_a_crowd_is_not_measured_on_the_slowest_kernel(figures: ModuleType) -> None:
    bench = importlib.import_module("bench")
    parts = ["data", "crowd", "relay"]
    assert bench.kernels(Namespace(kernel="6.1"), parts) == {"6.1": ["data", "relay"], "7.2": ["crowd"]}
    assert bench.kernels(Namespace(kernel="6.12"), parts) == {"6.12": parts}
