"""Copies what `root` needs into the tree of an initramfs: Python's byte code, and which programs and libraries besides.

Nothing is listed by hand. What our modules import, be it in a function, is read from their source and really imported;
what that brings along is in `sys.modules` then.

    python3 -m nbdattach.initramfs DESTDIR     prints "FILE PLACE" for each ELF file, whose libraries belong there, too
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import py_compile
import sys
from collections.abc import Iterator
from types import ModuleType

import nbdattach

PACKAGES = "/usr/lib/nbdattach"
PYTHON = "/usr/bin/python3"
# root: the way in. worker: the guard of an attachment under way, and the flush before a detach.
ENTRIES = ("nbdattach.root", "nbdattach.worker")
_STDLIB = os.path.dirname(os.__file__)


def main() -> None:
    """The command."""
    (tree,) = sys.argv[1:]
    for name in ENTRIES:
        _load(name, set())
    from nbdattach import root

    root.see_all_is_there()
    print(os.path.realpath(sys.executable), PYTHON)  # noqa: T201 - its result
    for name, module in sorted(sys.modules.items()):
        if module is not sys.modules["__main__"]:
            _place(name, module, tree)


def _load(name: str, seen: set[str]) -> None:
    """Imports it, and all that our modules import when they run; others are left to what they import at once."""
    if name in seen:
        return
    seen.add(name)
    module = importlib.import_module(name)
    if name.partition(".")[0] != nbdattach.__name__ or not module.__file__:
        return
    with open(module.__file__) as file:
        for wanted in _imported(ast.parse(file.read())):
            _load(wanted, seen)


def _imported(tree: ast.AST) -> Iterator[str]:
    """Names of modules that are imported at run time, at the top or in a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (full for alias in node.names if _is_module(full := f"{node.module}.{alias.name}"))
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        else:
            yield from _imported(node)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is no package
        return False


def _place(name: str, module: ModuleType, tree: str) -> None:
    file = getattr(module, "__file__", None)
    if not file:
        return  # built into the interpreter, or made by another module
    folder = _STDLIB if _is_of_python(file) else PACKAGES
    if file.endswith(".py"):
        code = name.replace(".", "/") + ("/__init__" if hasattr(module, "__path__") else "")
        py_compile.compile(file, f"{tree}{folder}/{code}.pyc", dfile=f"{folder}/{code}.py", doraise=True)
    else:
        print(file, file if folder == _STDLIB else f"{folder}/{name.replace('.', '/')}.so")  # noqa: T201


def _is_of_python(file: str) -> bool:
    return file.startswith(f"{_STDLIB}/") and not file.startswith((f"{_STDLIB}/site-packages", f"{_STDLIB}/dist-"))


if __name__ == "__main__":
    main()
