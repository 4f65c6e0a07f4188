# SPDX-License-Identifier: GPL-2.0-or-later
"""The server of a TARGET that a command only looks at: it runs already, or is started and ended for the command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from nbdattach.cli.types import target_of
from nbdattach.errors import Malformed, NbdattachError
from nbdattach.immutable import immutable
from nbdattach.text import plain

if TYPE_CHECKING:
    from nbdattach.own_server.source import Source
    from nbdattach.protocol.target import Target
    from nbdattach.server_of_ours import Image


@immutable
class There:
    """`name` and `server` are for users; `explained` words an error of the target as they know it."""

    target: Target
    name: str
    server: str
    image: Image | None
    explained: Callable[[NbdattachError], NbdattachError]


def reached(
    text: str, export: str | None, trust: dict[str, Any], format_: str | None = None
) -> AbstractContextManager[There]:
    """The server of the target. Raises `NbdattachError`, and so does the context, which words those of its block."""
    from nbdattach.own_server.source import SOME_SERVER, no_tls, source_of
    from nbdattach.protocol.target import with_tls

    source = source_of(text, export)
    if source is None:
        target = target_of(text, export, trust)
        if format_ is not None:
            raise Malformed("--format", f"{plain(text)} is no image", "leave it out")
        return _running(target)
    if with_tls(SOME_SERVER, **trust).tls:
        raise no_tls(source)
    return _started(source, format_)


def _running(target: Target) -> AbstractContextManager[There]:
    if target.tls:
        from nbdattach.connection import tls

        tls.require_usable(target)
    return nullcontext(There(target, target.uri, target.server, None, lambda error: error))


@contextmanager
def _started(source: Source, format_: str | None) -> Iterator[There]:
    from nbdattach.connect_options import ImageOptions
    from nbdattach.own_server import start

    planned = start.plan_of(source, ImageOptions(format=format_), read_only=True, look=True)
    with start.served(source, planned) as one, one.explained():
        name = plain(source.name)
        yield There(one.target, name, name, one.server.image, one.worded)
