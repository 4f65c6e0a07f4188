# SPDX-License-Identifier: GPL-2.0-or-later
"""The folder in which kernels and roots are kept from one run to the next, beside all checkouts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def folder() -> Path:
    """NBDATTACH_LAB names another place."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("NBDATTACH_LAB") or os.path.join(home, "nbdattach-lab"))


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The finished folder of that name; `make` fills it if it is missing. One process makes it, others wait."""
    place = folder() / name
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.parent / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            _make(place, make)
    return place


def _make(place: Path, make: Callable[[Path], None]) -> None:
    new = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        make(new)
        new.chmod(0o755)
        new.rename(place)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(new)
        raise
