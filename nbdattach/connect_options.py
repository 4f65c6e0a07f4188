# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of one attachment, as one value for all layers. No I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nbdattach.errors import Malformed
from nbdattach.text import quoted

DEFAULT_TIMEOUT = 30.0
DEFAULT_ON_LOSS = 300.0
DEFAULT_DEAD_PEER = 30.0
FOREVER = float("inf")
# Bytes.
MAX_TAG = 255


@dataclass(frozen=True, slots=True)
class Wishes:
    """The options of connect. Sizes in bytes, times in seconds; `connections` 0 means auto.

    `on_loss` is how long I/O waits for a server that is away: 0 to fail at once, `FOREVER`, or None for the backend's
    default. `reconnect`: the monitor reconnects it. `root`: the root file system will be on it, and the real system's
    monitor will be started from there.
    """

    read_only: bool = False
    block_size: int | None = None
    connections: int = 0
    connect_timeout: float = DEFAULT_TIMEOUT
    retry_for: float = 0.0
    tag: str = ""
    expect_size: int | None = None
    raw_size: int | None = None  # --size with --no-handshake
    swap: bool = False
    backend: str = "auto"  # "auto" | "netlink" | "ioctl"
    on_loss: float | None = None
    dead_peer: float = DEFAULT_DEAD_PEER
    io_timeout: float = 0.0
    reconnect: bool = True
    tls_transport: str = "auto"  # "auto" | "kernel" | "relay"
    table: str = ""  # the file that names it, if `up` attaches it
    root: bool = False

    def __post_init__(self) -> None:
        """Raises `Malformed` if the tag is unfit for a line in /sys and for names in /dev."""
        if not self.tag.isprintable() or self.tag != self.tag.strip():
            cause = f"{quoted(self.tag)} contains unprintable characters, or blanks at its ends"
            raise Malformed("--tag", cause, "use letters and digits")
        if len(self.tag.encode()) > MAX_TAG:
            raise Malformed("--tag", f"longer than {MAX_TAG} bytes", "use a shorter name")

    @property
    def whole_io_timeout(self) -> int:
        """In whole seconds, as the kernel takes it, rounded up so that a fraction does not become 0."""
        return math.ceil(self.io_timeout)
