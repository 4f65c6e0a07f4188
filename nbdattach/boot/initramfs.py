# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies all that `root` needs into the tree of an initramfs, for the hooks of initramfs-tools and dracut.

    python3 -m nbdattach.boot.initramfs TREE KERNEL_VERSION

It copies Python's byte code, certificates and keys. Other files it prints, because the hook's own tools copy them
together with their dependencies: "copy FILE PLACE" for each ELF file, "module NAME" for each kernel module.

No file of Python is listed by hand. It reads the imports of our modules, also those in functions, from their source
and imports them. Then `sys.modules` has these modules and all that they import.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import nbdattach

PACKAGES = "/usr/lib/nbdattach"
PYTHON = "/usr/bin/python3"
# root: the way in. The others are processes that it starts: the guard of an attachment under way, and what a detach
# needs, the flush before it and the removal of leftovers.
ENTRIES = ("nbdattach.boot.root", "nbdattach.kernel.guard", "nbdattach.kernel.flush", "nbdattach.kernel.leftovers")
# The driver, and TLS in the kernel with the ciphers that it may be asked for, by the names the kernel knows them by.
_DRIVERS = ("nbd", "tls", "af_packet")
# For --scheduler, by the names under which the kernel loads them (elevator_get in block/elevator.c).
_SCHEDULERS = ("kyber-iosched", "bfq-iosched")
_CIPHERS = ("gcm", "gcm(aes)", "rfc7539", "rfc7539(chacha20,poly1305)", "aes", "ctr", "ghash", "chacha20", "poly1305")
# Names of servers that no name server knows.
_HOSTS = "/etc/hosts"
_STDLIB = os.path.dirname(os.__file__)


def main() -> None:
    """The command."""
    tree, version = sys.argv[1:]
    if not _modprobe(version, "--show-depends", "nbd"):
        sys.exit(f"nbdattach: the kernel {version} has no driver nbd")
    for name in ENTRIES:
        _load(name, set())
    from nbdattach.boot import root
    from nbdattach.connection import stream

    stream.warm_up()
    _print("copy", os.path.realpath(sys.executable), PYTHON)
    for name, module in sorted(sys.modules.items()):
        if module is not sys.modules["__main__"]:
            _place(name, module, tree)
    _trust(root.TLS_FOLDER, tree)
    for name in [*_DRIVERS, *_modules_by_alias(version)]:
        _print("module", name)


def _print(*words: str) -> None:
    print(*words)  # noqa: T201 - its result


def _load(name: str, seen: set[str]) -> None:
    """Imports it; for a module of ours also the imports in its functions, recursively."""
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
        _print("copy", file, file if folder == _STDLIB else f"{folder}/{name.replace('.', '/')}.so")


def _is_of_python(file: str) -> bool:
    return file.startswith(f"{_STDLIB}/") and not file.startswith((f"{_STDLIB}/site-packages", f"{_STDLIB}/dist-"))


def _trust(folder: str, tree: str) -> None:
    """Copies certificates and keys, and /etc/hosts if the tree has none yet."""
    if os.path.exists(_HOSTS) and not os.path.exists(f"{tree}{_HOSTS}"):
        os.makedirs(os.path.dirname(f"{tree}{_HOSTS}"), exist_ok=True)
        shutil.copyfile(_HOSTS, f"{tree}{_HOSTS}")
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        if os.path.isfile(f"{folder}/{name}"):
            os.makedirs(f"{tree}{folder}", exist_ok=True)
            _copy_secretly(f"{folder}/{name}", f"{tree}{folder}/{name}")


def _copy_secretly(file: str, place: str) -> None:
    """Copies a key so that no other user can read it at any moment, even if all users can read the tree."""
    with open(file, "rb") as key, open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as copy:
        os.fchmod(copy.fileno(), 0o600)  # for a file that another hook put there
        shutil.copyfileobj(key, copy)


def _modules_by_alias(version: str) -> list[str]:
    """The modules of that kernel for our ciphers and schedulers; what is built in has none."""
    aliases = (*(f"crypto-{cipher}" for cipher in _CIPHERS), *_SCHEDULERS)
    return sorted({name for alias in aliases for name in _modprobe(version, "--resolve-alias", alias)})


def _modprobe(version: str, *question: str) -> list[str]:
    """Words of modprobe's answer about that kernel's modules; empty if it has none."""
    return subprocess.run(
        ["modprobe", "--set-version", version, *question], capture_output=True, text=True
    ).stdout.split()


if __name__ == "__main__":
    main()
