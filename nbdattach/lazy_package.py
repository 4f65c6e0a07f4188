# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the modules of a large package importable without running its `__init__`, which imports all of them.

pyroute2's takes a fifth of a second and 15 MB, and we need three of its modules. The package that we put in its place
is the real one: its `__init__` runs as soon as anything in this process asks for more of it.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader  # which would import all of importlib.resources


def defer(name: str) -> None:
    """To be called before the first import of one of the package's modules. Does nothing if the package is missing."""
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec and spec.loader:
        package = importlib.util.module_from_spec(spec)
        _run_when_asked(package, spec.loader)
        sys.modules[name] = package


def _run_when_asked(package: ModuleType, loader: Loader) -> None:
    def look_up(attribute: str) -> object:
        # `from package import module` asks here first, and loads the module itself where there is no such attribute.
        if importlib.util.find_spec(f"{package.__name__}.{attribute}"):
            raise AttributeError(attribute)
        del package.__dict__["__getattr__"]
        loader.exec_module(package)
        return getattr(package, attribute)

    package.__dict__["__getattr__"] = look_up  # PEP 562
