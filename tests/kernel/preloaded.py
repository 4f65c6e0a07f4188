# SPDX-License-Identifier: GPL-2.0-or-later
"""All that a command imports, for a process that is copied for each: in a guest, imports take most of the time."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

# Other packages do work when they are imported, or are for programs without click.
_PACKAGES = ("attached", "backends", "boot", "cli", "connection", "host", "monitor", "operations", "protocol")


@cache
def import_all() -> None:
    for package in _PACKAGES:
        folder = importlib.import_module(f"nbdattach.{package}")
        for module in pkgutil.iter_modules(folder.__path__):
            importlib.import_module(f"nbdattach.{package}.{module.name}")
