"""How a function of this package is run in a process of its own, whatever the environment and the folder."""

from __future__ import annotations

import os
import sys

import nbdattach

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(nbdattach.__file__)))


def bare_python(function: str, *arguments: str, module: str = "worker") -> list[str]:
    """The command for a function of that module: isolated (-I) and without site-packages (-S), about 9 MB."""
    boot = f"import sys; sys.path.insert(0, sys.argv.pop(1)); from nbdattach import {module}; "
    return [sys.executable, "-I", "-S", "-c", f"{boot}{module}.{function}(sys.argv[1:])", _PACKAGE, *arguments]


def python(module: str, function: str) -> list[str]:
    """The command for a function without arguments of a module that needs the libraries, too."""
    boot = f"import sys; sys.path.append(sys.argv[1]); from nbdattach import {module}; {module}.{function}()"
    return [sys.executable, "-I", "-c", boot, _PACKAGE]
