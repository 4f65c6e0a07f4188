# SPDX-License-Identifier: GPL-2.0-or-later
"""The alphabet in which protocol code speaks: a generator yields these steps and is handed what it asked for.

The kernel takes the socket over right after the handshake, so a byte read too many would be lost:
`Receive` asks for an exact size, and nobody reads ahead.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Receive:
    """Wants exactly `size` bytes sent back into the generator."""

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
    """What is happening, for --debug and for errors that must tell what was waited for."""

    text: str


Step: TypeAlias = Receive | Send | StartTls | Note
Steps: TypeAlias = Generator[Step, bytes, T]
