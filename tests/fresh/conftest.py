# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests on fresh systems, each in its own root, which is removed afterwards. As root, with the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from root import Root, fresh


@pytest.fixture(scope="module")
def make_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Root]]:
    """They live as long as the tests of a file."""
    made: list[Root] = []

    def make(release: str) -> Root:
        made.append(fresh(release, tmp_path_factory.mktemp(release) / "root"))
        return made[-1]

    yield make
    for root in made:
        root.remove()


@pytest.fixture
def root(release: str, tmp_path: Path) -> Iterator[Root]:
    """Of the release that the test is run for."""
    made = fresh(release, tmp_path / "root")
    yield made
    made.remove()
