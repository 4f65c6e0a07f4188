# SPDX-License-Identifier: GPL-2.0-or-later
"""How many generated examples there are: a fixed budget in `make test`, which decides, and more in `make test-all`.

`make test` takes the same examples each time. Random ones would find more in the long run, but at some moment that has
nothing to do with the change that is tested. So NBDATTACH_EXAMPLES=all generates random ones, and twenty times as many;
a failure prints the settings that generate its example again.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_HERE = Path(__file__).parent
# A time limit for one example depends on the load of the machine, and so does the health check of their speed.
_UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
settings.register_profile("fixed", _UNTIMED, max_examples=50, derandomize=True)
settings.register_profile("all", _UNTIMED, max_examples=1000, print_blob=True)
settings.load_profile("all" if os.environ.get("NBDATTACH_EXAMPLES") == "all" else "fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sample", type=int, metavar="N", help="N parameters of each test: the first and the last ones")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Interpreters seldom differ by a parameter of a test, so the second one takes a sample of these.

    Not of tests that some interpreters skip.
    """
    most = config.getoption("--sample")
    if most is None:
        return
    functions: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.path.is_relative_to(_HERE) and not item.get_closest_marker("skipif"):
            functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out = {item for found in functions.values() for item in found[(most + 1) // 2 : len(found) - most // 2]}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]
