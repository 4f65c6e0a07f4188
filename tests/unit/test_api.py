# SPDX-License-Identifier: GPL-2.0-or-later
"""The names that `import nbdattach` offers, which are loaded when they are used. Their types: tests/lint/example."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import nbdattach


@pytest.mark.parametrize("name", nbdattach.__all__)
def test_each_name_that_is_offered_is_there(name: str) -> None:
    assert getattr(nbdattach, name).__name__ == name


def test_what_is_offered_is_what_can_be_loaded_and_what_a_type_checker_sees() -> None:
    tree = ast.parse(Path(nbdattach.__file__).read_text())
    (seen,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in seen.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    loaded = {name: f"nbdattach.{home}" for name, home in nbdattach._HOMES.items()}
    assert typed == loaded
    assert sorted(typed) == sorted(nbdattach.__all__)


def test_a_name_that_is_not_offered_is_an_error_of_python() -> None:
    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        nbdattach.conect  # noqa: B018
