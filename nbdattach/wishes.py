"""What a user wants of an attachment, as one value that crosses the layers. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Wishes:
    """The options of connect. Sizes in bytes, times in seconds; `connections` 0 means auto."""

    read_only: bool = False
    block_size: int | None = None
    connections: int = 0
    connect_timeout: float = DEFAULT_TIMEOUT
    retry_for: float = 0.0
    tag: str = ""
    expect_size: int | None = None
    raw_size: int | None = None  # --size with --no-handshake
    swap: bool = False
