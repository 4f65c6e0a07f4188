# SPDX-License-Identifier: GPL-2.0-or-later
"""Imports go one way, and one module imports each outside thing. This reads the imports of every module and checks it.

A room is a package in `nbdattach`. The last paragraph of its `__init__` says which others it may import.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import nbdattach

pytestmark = pytest.mark.once

PACKAGE = Path(nbdattach.__file__).parent


def room_of(module: str) -> str:
    """Its room; a module that is in none counts as a room."""
    return module.partition(".")[0]


# By names without "nbdattach."; that of a package ends with "__init__".
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
    for path in PACKAGE.rglob("*.py")
}
ROOMS = sorted(name.removesuffix(".__init__") for name in MODULES if name.endswith(".__init__"))
# These stand on nothing but one another, and every room may import them.
GROUND = {
    "immutable",
    "errors",
    "device",
    "text",
    "deadline",
    "clock",
    "connect_options",
    "option_values",
    "reporter",
    "untrusted_json",
    "error_facts",
    "tls_session",
    "server_of_ours",
    "at_once",
}

# Outside thing: the modules that may import it.
DOORS = {
    # systemd, journal: datagrams to them; kernel_socket: connections that the kernel uses
    # control: the monitor's socket
    # tls: only the type of the wrapped socket
    # dialer, process: the orders between them; pump: its sockets
    # messages: between commands, monitor and relay; blocking: descriptors from a process that opens files that may hang
    # their_sockets: duplicates of another process's connections
    "socket": {
        "connection.stream",
        "connection.probe",
        "host.systemd",
        "kernel.genetlink",
        "kernel.dead_links",
        "connection.kernel_socket",
        "monitor.control",
        "connection.tls",
        "relay.dialer",
        "relay.process",
        "relay.pump",
        "host.blocking",
        "host.blocking_child",
        "host.reading",
        "host.messages",
        "host.journal",
        "host.their_sockets",
    },
    # certificate: reads them; pump: errors of a socket that must not wait
    "ssl": {
        "connection.tls",
        "connection.tls_context",
        "connection.tls_failures",
        "connection.openssl_errors",
        "connection.certificate",
        "relay.pump",
    },
    # node: flock on the device node; state: the lock of a tag
    "fcntl": {"kernel.ioctl", "kernel.loop", "host.syscalls", "kernel.node"},
    "ctypes": {"kernel.ioctl", "host.syscalls"},
    "click": {name for name in MODULES if room_of(name) == "cli"},
    "pyroute2": {"kernel.dead_links"},
    "curses": {"cli.screen"},
    "http": set(),
    "urllib.request": set(),
    "asyncio": set(),
    "logging": set(),
    "pickle": set(),
}
# These do no I/O at all: they know text, bytes and numbers.
PURE = (
    *(name for name in MODULES if room_of(name) in ("content", "protocol")),
    "text",
    "errors",
    "error_facts",
    "untrusted_json",
    "tls_session",
    "server_of_ours",
    "immutable",
    "relay.orders",
    "device",
    "backends.limits",
    "connect_options",
    "attached.same_export",
    "cli.failure",
    "cli.render",
    "cli.status_table",
    "cli.view",
    "boot.kernel_command_line",
    "option_values",
    "boot.nbdtab",
)
IMPURE = {
    "socket", "ssl", "subprocess", "fcntl", "ctypes", "click", "pyroute2", "select", "selectors", "signal",
    "threading", "time", "pathlib", "shutil", "tempfile", "curses",
}  # fmt: skip
# Module of ours: the ones of ours that may import it.
INNER = {"cli.main": {"__main__"}, "__main__": set()}


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of the imports at run time, at the top or in a function; TYPE_CHECKING is no run time."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from (name for orelse in node.orelse for name in imported(orelse))
        else:
            yield from imported(node)


def outside(module: str) -> set[str]:
    """All prefixes of an imported name: "urllib.parse.quote", "urllib.parse", "urllib"."""
    return prefixes(imported(MODULES[module]))


def prefixes(names: Iterable[str]) -> set[str]:
    split = [name.split(".") for name in names]
    return {".".join(parts[:end]) for parts in split for end in range(1, len(parts) + 1)}


def ours(module: str) -> set[str]:
    """Modules of this package that a module imports, without the `__init__` of rooms."""
    return {name.removeprefix("nbdattach.") for name in outside(module)} & set(MODULES) - {"__init__"}


def allowed(room: str) -> set[str]:
    """The rooms that its first lines allow it to import."""
    text = ast.get_docstring(MODULES[f"{room}.__init__"]) or ""
    last = " ".join(text.split("\n\n")[-1].split())
    assert last.startswith("May import: ") and last.endswith("."), f"{room}: {last}"
    names = set(last.removeprefix("May import: ").removesuffix(".").split(", ")) - {"nothing else of ours"}
    assert names <= {*ROOMS, *MODULES}, f"{room}: {last}"
    return names


def test_room_imports_only_what_its_first_lines_allow() -> None:
    for module in MODULES:
        room = room_of(module)
        if room in ROOMS:
            assert {*map(room_of, ours(module))} <= {room, *GROUND, *allowed(room)}, module


def test_ground_stands_on_itself() -> None:
    assert {name: ours(name) - GROUND for name in GROUND} == {name: set() for name in GROUND}


def test_rooms_look_one_way() -> None:
    looks: dict[str, set[str]] = {}
    for module in MODULES:
        looks.setdefault(room_of(module), set()).update(map(room_of, ours(module)))
    for room in ROOMS:
        looks[room] = (looks[room] | allowed(room)) - {room}
    TopologicalSorter(looks).prepare()


def test_room_has_a_door_and_nothing_behind_it() -> None:
    """Imports from a room name one of its modules: its `__init__` only describes the room."""
    for room in ROOMS:
        tree = MODULES[f"{room}.__init__"]
        assert [type(node) for node in tree.body] == [ast.Expr], room
    folders = {str(path.parent.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")} - {"."}
    assert sorted(folders) == ROOMS


@pytest.mark.parametrize("thing", DOORS)
def test_outside_thing_has_its_doors_only(thing: str) -> None:
    importers = {module for module in MODULES if thing in outside(module)}
    assert importers <= DOORS[thing]


@pytest.mark.parametrize("module", PURE)
def test_pure_module_does_no_io(module: str) -> None:
    assert outside(module) & IMPURE == set()
    assert ours(module) <= set(PURE)


@pytest.mark.parametrize("module", PURE)
def test_pure_module_opens_no_file(module: str) -> None:
    calls = {ast.unparse(node.func) for node in ast.walk(MODULES[module]) if isinstance(node, ast.Call)}
    assert calls & {"open", "print", "input", "os.open", "os.read", "os.write", "os.stat"} == set()


@pytest.mark.parametrize("module", INNER)
def test_outermost_module_is_imported_by_nobody_else(module: str) -> None:
    importers = {other for other in MODULES if module in ours(other)}
    assert importers <= INNER[module]


def test_imports_make_no_cycle() -> None:
    TopologicalSorter({module: ours(module) for module in MODULES}).prepare()


def test_imports_in_functions_are_seen() -> None:
    tree = ast.parse("def f():\n    import ssl\n    from urllib import parse\nif TYPE_CHECKING:\n    import socket\n")
    assert set(imported(tree)) == {"ssl", "urllib.parse"}
