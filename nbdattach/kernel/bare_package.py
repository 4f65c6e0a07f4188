# SPDX-License-Identifier: GPL-2.0-or-later
"""Imports modules of a large package without running its `__init__`, which imports all of them.

That of pyroute2 takes a fifth of a second and 15 MB, and we need one of its modules. We load a copy of our own: no
other code in this process sees it, and an import of pyroute2 elsewhere still gives the whole package.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bare(name: str) -> Iterator[None]:
    """Within it, modules of the package are imported so. A package that is imported already is used as it is."""
    if name in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(name)
    if spec:  # else the import says that it is missing
        sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        for loaded in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
            del sys.modules[loaded]
