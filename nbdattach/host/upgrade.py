# SPDX-License-Identifier: GPL-2.0-or-later
"""An upgrade of nbdattach while it runs, perhaps for months: connect --foreground, --retry-for, a program with our API.

Its modules are loaded when they are first needed. After an upgrade the files on disk are those of another version,
whose modules may have other names. So a process that is going to stay loads all of its own before.
"""

from __future__ import annotations

import contextlib
import functools

import nbdattach


@functools.cache
def load_all() -> None:
    """Loads each module of this package; the initramfs has some of them. Takes 0.1 s and 12 MB."""
    import importlib  # few commands stay
    import pkgutil

    for found in pkgutil.walk_packages(nbdattach.__path__, f"{nbdattach.__name__}.", onerror=lambda _: None):
        # A program that uses our API may do without click; and after an upgrade that came before, anything may fail.
        with contextlib.suppress(Exception):
            importlib.import_module(found.name)
