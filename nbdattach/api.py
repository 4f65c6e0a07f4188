# SPDX-License-Identifier: GPL-2.0-or-later
"""The Python API. The command line is a thin layer on it.

    import nbdattach

    with nbdattach.connect("nbd://db1/disk", "/dev/nbd0") as attachment:
        print(attachment.device, attachment.status().size)

Devices are named as on the command line: "/dev/nbd0" or "nbd0". Sizes in bytes, times in seconds. Errors are subclasses
of `NbdattachError`, with `thing`, `cause`, `hint` and `exit_code`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbdattach.connect_options import (
    DEFAULT_DEAD_PEER,
    DEFAULT_TIMEOUT,
    USUAL,
    ConnectOptions,
    ImageOptions,
    options_of,
)
from nbdattach.device import Device, parse_device
from nbdattach.errors import Malformed
from nbdattach.operations.handle import DETACH_SECONDS
from nbdattach.operations.handle import Attachment as Attachment
from nbdattach.own_server.source import SOME_SERVER, Source, no_tls, one_text, source_of
from nbdattach.protocol.target import Target, others, parse_target, with_tls
from nbdattach.reporter import QUIET, Reporter
from nbdattach.text import plain

if TYPE_CHECKING:
    from nbdattach.attached.status import Status


def connect(
    target: str | Sequence[str],
    device: str | None = None,
    *,
    export: str | None = None,
    read_only: bool = False,
    read_write: bool = False,
    shared: bool = False,
    block_size: int | None = None,
    connections: int = 0,
    connect_timeout: float = DEFAULT_TIMEOUT,
    retry_for: float = 0.0,
    tag: str = "",
    expect_size: int | None = None,
    swap: bool = False,
    backend: str = "auto",
    on_loss: float | None = None,
    dead_peer: float = DEFAULT_DEAD_PEER,
    io_timeout: float = 0.0,
    scheduler: str | None = None,
    read_ahead: int | None = None,
    reconnect: bool = True,
    size: int | None = None,
    tls: bool = False,
    tls_ca: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    tls_hostname: str | None = None,
    tls_psk: str | None = None,
    tls_verify: bool = True,
    tls_transport: str = "auto",
    also: Sequence[str] = (),
    format: str | None = None,
    snapshot: bool = False,
    cache: str | None = None,
    discard: str = "unmap",
    offset: int | None = None,
    reporter: Reporter = QUIET,
) -> Attachment:
    """Attaches `target` (and its `export`, if `target` is no URI) at `device`, or at a free one.

    `target` may also be the path of a disk image, or a list of words: the command of a server, which is started.

    Sizes in bytes, times in seconds, `connections` 0 for an automatic number. The device is ready when this returns.
    `on_loss` is how long requests wait for a server that is away: None for the default, 0 not at all,
    `float("inf")` for ever. With `reconnect` the monitor watches it, and is started if none runs. With `size`
    the server sends no greeting, and the export has that many bytes. With `read_write` an export that is read-only is
    refused; unless it is `shared`, one that another device has read-write is. `also`: other servers of the same data.
    `scheduler` and `read_ahead` are those of the device's queue; None leaves them to the kernel.
    `format`, `snapshot`, `cache`, `discard` and `offset` are for images; with them `size` is the image's part.
    `reporter` gets each step. Each `tls_...` except `tls_transport` requires TLS; `tls_verify` False accepts any
    certificate.
    Raises the subclasses of `NbdattachError`.

        attachment = nbdattach.connect("db1", "nbd0", export="disk", read_only=True, tag="db")
    """
    place = None if device is None else parse_device(device)
    text = target if isinstance(target, str) else one_text(target)
    image = ImageOptions(format=format, snapshot=snapshot, cache=cache, discard=discard, offset=offset)
    source = source_of(text, export)
    where = with_tls(
        SOME_SERVER if source else parse_target(text, export),
        required=tls,
        ca=tls_ca,
        cert=tls_cert,
        key=tls_key,
        hostname=tls_hostname,
        psk=tls_psk,
        verify=tls_verify,
    )
    for one in also:
        if source_of(one):
            raise Malformed(f"--also {plain(one)}", "an image, or a command, is no server that runs", "leave it out")
    options = ConnectOptions(
        read_only=read_only,
        read_write=read_write,
        shared=shared,
        block_size=block_size,
        connections=connections,
        connect_timeout=connect_timeout,
        retry_for=retry_for,
        tag=tag,
        expect_size=expect_size,
        swap=swap,
        backend=backend,
        on_loss=on_loss,
        dead_peer=dead_peer,
        io_timeout=io_timeout,
        scheduler=scheduler,
        read_ahead=read_ahead,
        reconnect=reconnect,
        raw_size=size,
        tls_transport=tls_transport,
        also=tuple(one.uri for one in others(where, also)),
    )
    if source and where.tls:
        raise no_tls(source)
    return attach(source or where, place, options, reporter, image)


def attach(
    target: Target | Source,
    device: Device | None,
    options: ConnectOptions,
    reporter: Reporter = QUIET,
    image: ImageOptions = USUAL,
) -> Attachment:
    """`connect` for options that have been parsed already."""
    if isinstance(target, Source):
        from nbdattach.operations import serving

        return serving.attach(target, device, options, image, reporter)
    if image != USUAL:
        named = next(one.name for one in options_of(ImageOptions).values() if getattr(image, one.field) != one.default)
        raise Malformed(f"--{named}", f"{target.uri} is a server, not an image", "leave it out")
    from nbdattach.operations import attachment

    return attachment.attach(target, device, options, reporter)


def disconnect(
    device: str,
    timeout: float = DETACH_SECONDS,
    *,
    force: bool = False,
    if_tag: str | None = None,
    release: bool = False,
    reporter: Reporter = QUIET,
) -> str:
    """Detaches the device, as `Attachment.disconnect` does; with `if_tag` only if its attachment has that tag.

    Returns why there was nothing to do, or an empty text after it was detached.

        nbdattach.disconnect("nbd0", if_tag="db")
    """
    from nbdattach.operations import detachment

    return detachment.detach(
        parse_device(device), timeout, force=force, only_tag=if_tag, release=release, reporter=reporter
    )


def attachments() -> list[Status]:
    """Every attached nbd device of this host, ours or foreign, by number.

    for one in nbdattach.attachments():
        print(one.device, one.state, one.target)
    """
    from nbdattach.attached.status import all_attached

    return all_attached()


def find(*, tag: str | None = None, target: str | None = None, export: str | None = None) -> list[Attachment]:
    """Attachments of that tag, or of that target.

    for one in nbdattach.find(tag="db"):
        one.disconnect()
    """
    from nbdattach.attached import tags

    if target is not None and (found := find_source(target)):
        return found
    if target is not None and source_of(target, export):
        return []
    uri = None if target is None else parse_target(target, export).uri
    return [Attachment.at(one.path) for one in tags.attached_as(tag=tag, target=uri)]


def find_source(text: str) -> list[Attachment]:
    """Attachments of that image, or of that command in brackets; also of an image that was deleted meanwhile.

    for one in nbdattach.api.find_source("disk.qcow2"):
        print(one.device)
    """
    from nbdattach.operations import serving

    return [Attachment.at(one.path) for one in serving.named_as(text)]
