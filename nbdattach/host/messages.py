# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages between processes of ours (command, monitor, relay): a JSON object a packet, perhaps with descriptors.

An answer is the object that was asked for, or the facts of an error, which is raised here as the same error.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from nbdattach.error_facts import error_of, facts_of
from nbdattach.errors import NbdattachError
from nbdattach.immutable import as_dict
from nbdattach.untrusted_json import made_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar("_T")

# Bytes; a receiver has no use for more.
MAX_MESSAGE = 1 << 16
# Of a list in an error, such as the users of a device; fewer if they are long.
_MAX_LINES = 512


def send(
    connection: socket.socket,
    message: DataclassInstance | NbdattachError,
    descriptors: Sequence[int] = (),
    without: Sequence[str] = (),
) -> None:
    """Raises OSError. The fields in `without` are left out, for a peer of a version that does not know them."""
    if isinstance(message, NbdattachError):
        data = _of_error(message)
    else:
        fields = as_dict(message)
        data = json.dumps({name: fields[name] for name in fields if name not in without}).encode()
    socket.send_fds(connection, [data], list(descriptors))


def _of_error(error: NbdattachError) -> bytes:
    """Facts that fit into a message: a busy device may have thousands of users."""
    most = _MAX_LINES
    while True:
        data = json.dumps(facts_of(error, most)).encode()
        if len(data) <= MAX_MESSAGE or not most:
            return data
        most //= 2


def receive(connection: socket.socket, most_descriptors: int = 0) -> tuple[bytes, list[int]]:
    """The message, empty if the peer is gone, and its descriptors, which are ours now. Raises OSError."""
    if not most_descriptors:
        return connection.recv(MAX_MESSAGE), []
    message, descriptors, _, _ = socket.recv_fds(connection, MAX_MESSAGE, most_descriptors)
    return message, descriptors


def answer(kind: type[_T], content: object) -> _T:
    """The answer in a message that has been parsed. Raises `NbdattachError`, the peer's, or ValueError."""
    if isinstance(content, dict) and "code" in content:
        raise error_of(content)
    return made_of(kind, content)
