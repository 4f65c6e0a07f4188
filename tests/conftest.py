# SPDX-License-Identifier: GPL-2.0-or-later
"""A skipped test has proved nothing, so it fails, unless its reason is listed here."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
IN_GUEST = "nbdattach.lab=1" in Path("/proc/cmdline").read_text()
# Each reason, and whether it holds here. Guests have IPv6; this machine may lack it.
EXPECTED = {
    "Python has no pre-shared keys before 3.13": sys.version_info < (3, 13),
    "no IPv6 here": not IN_GUEST,
}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return judged((yield))


def judged(report: Report) -> Report:
    """The report; it has failed if its test was skipped for no listed reason."""
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not EXPECTED.get(reason):
            report.outcome, report.longrepr = "failed", f"skipped: {reason} (not expected here: tests/conftest.py)"
    return report
