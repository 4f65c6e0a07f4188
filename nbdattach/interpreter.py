"""How a function of `worker` is run in a process of its own that has loaded next to nothing."""

from __future__ import annotations

import os
import sys

import nbdattach


def bare_python(function: str, *arguments: str) -> list[str]:
    """The command: isolated from the environment (-I), without site-packages (-S), about 9 MB."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(nbdattach.__file__)))
    boot = "import sys; sys.path.insert(0, sys.argv.pop(1)); from nbdattach import worker; "
    return [sys.executable, "-I", "-S", "-c", f"{boot}worker.{function}(sys.argv[1:])", package, *arguments]
