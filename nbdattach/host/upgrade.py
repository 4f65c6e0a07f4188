# SPDX-License-Identifier: GPL-2.0-or-later
"""An upgrade of nbdattach while one of its commands runs, perhaps for months: with connect --foreground, --retry-for.

Its modules are loaded when they are first needed. After an upgrade the files on disk are those of another version,
whose modules may have other names. So a command that is going to stay loads all of its own before.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

import nbdattach


@functools.cache
def load_all() -> None:
    """Loads each module of this package, about 200; those of the initramfs have fewer."""
    for found in pkgutil.walk_packages(nbdattach.__path__, f"{nbdattach.__name__}."):
        importlib.import_module(found.name)
