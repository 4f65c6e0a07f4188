# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps that protocol code yields as a generator; the caller does them and sends received bytes back.

The kernel takes the socket over right after the handshake, so a byte read too many would be lost:
`Receive` asks for an exact size, and no code reads ahead.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

from nbdattach.immutable import immutable

T = TypeVar("T")


@immutable
class Receive:
    """Asks for exactly `size` bytes, to be sent back into the generator."""

    size: int


@immutable
class Send:
    data: bytes


@immutable
class StartTls:
    """Everything after this step goes over TLS; the certificate must have the name `hostname`."""

    hostname: str


@immutable
class Note:
    """Names the present step, for --debug and for an error such as a timeout in it."""

    text: str


Step: TypeAlias = Receive | Send | StartTls | Note
Steps: TypeAlias = Generator[Step, bytes, T]
