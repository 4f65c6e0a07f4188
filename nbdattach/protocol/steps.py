# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps that protocol code yields as a generator; the caller does them and sends received bytes back.

The kernel takes the socket over right after the handshake, so a byte read too many would be lost:
`Receive` asks for an exact size, and no code reads ahead.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Receive:
    """Asks for exactly `size` bytes, to be sent back into the generator."""

    size: int


@dataclass(frozen=True, slots=True)
class Send:
    data: bytes


@dataclass(frozen=True, slots=True)
class StartTls:
    """Everything after this step goes over TLS; the certificate must have the name `hostname`."""

    hostname: str


@dataclass(frozen=True, slots=True)
class Note:
    """Names the present step, for --debug and for an error such as a timeout in it."""

    text: str


Step: TypeAlias = Receive | Send | StartTls | Note
Steps: TypeAlias = Generator[Step, bytes, T]
