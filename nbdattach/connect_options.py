# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of one attachment, as one value for all layers. No I/O.

Decision that matters: a field is declared once, with the name and the values that users type. The command line
(`cli.options`), /etc/nbdtab and the kernel's command line (`boot.nbdtab`), and the record on disk (`attached.state`)
follow from the fields. A new option is a field here, its help in `cli.connect`, its parameter in `api.connect`, and its
paragraph in the man page; tests compare all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from nbdattach import option_values
from nbdattach.errors import Malformed
from nbdattach.immutable import immutable
from nbdattach.server_of_ours import OwnServer
from nbdattach.text import quoted

DEFAULT_TIMEOUT = 30.0
DEFAULT_ON_LOSS = 300.0
DEFAULT_DEAD_PEER = 30.0
FOREVER = float("inf")
# Bytes.
MAX_TAG = 255


class Option(NamedTuple):
    """How users give the field `field` a value: `name` without dashes, then text that `parse` takes, of kind `kind`.

    Without `parse` it is a flag, which sets the value `flag`. `words` are values that a shell can offer; `default` is
    the field's, or the text that users would type for it. With `many` it may be given several times.
    """

    name: str
    parse: Callable[[str], Any] | None = None
    kind: str = ""
    words: Sequence[str] = ()
    flag: bool = True
    default: object = None
    field: str = ""
    many: bool = False

    def value(self, given: bool) -> bool:
        """Of a flag that is given, or not."""
        return self.flag if given else not self.flag


def _field(default: Any, option: Option) -> Any:
    return dataclasses.field(default=default, metadata={"option": option})


def _flag(name: str, sets: bool = True) -> Any:
    return _field(not sets, Option(name, flag=sets))


def _seconds(name: str, default: float, least: float = 0.0) -> Any:
    return _field(default, Option(name, functools.partial(option_values.seconds, least=least), "TIME"))


def _word(name: str, words: Sequence[str]) -> Any:
    parse = functools.partial(option_values.one_of, words=words)
    return _field(words[0], Option(name, parse, f"[{'|'.join(words)}]", words))


def _bytes(name: str, least: int) -> Any:
    return _field(None, Option(name, functools.partial(option_values.size, least=least), "SIZE"))


def _file(name: str) -> Any:
    return _field(None, Option(name, str, "FILE"))


@immutable(kw_only=True)
class LastingOptions:
    """Those that matter as long as the device is attached. Times in seconds.

    `on_loss` is how long I/O waits for a server that is away. `reconnect`: the monitor reconnects the device. `root`:
    the root file system will be on it, and the real system's monitor will be started from there. `also`: URIs of other
    servers of the same data. `scheduler` and `read_ahead` (in bytes) are those of the device's queue; None leaves them
    as they are.
    """

    connect_timeout: float = _seconds("connect-timeout", DEFAULT_TIMEOUT, option_values.LEAST_CONNECT_TIMEOUT)
    on_loss: float | None = _field(
        None, Option("on-loss", option_values.on_loss, "wait[:TIME]|fail", ("wait", "wait:300", "fail"))
    )
    dead_peer: float = _seconds("dead-peer", DEFAULT_DEAD_PEER, option_values.LEAST_DEAD_PEER)
    io_timeout: float = _seconds("io-timeout", 0.0)
    reconnect: bool = _flag("no-reconnect", sets=False)
    tls_transport: str = _word("tls-transport", option_values.TRANSPORTS)
    scheduler: str | None = _field(None, Option("scheduler", option_values.scheduler, "NAME", option_values.SCHEDULERS))
    read_ahead: int | None = _field(None, Option("read-ahead", option_values.read_ahead, "SIZE"))
    also: tuple[str, ...] = _field((), Option("also", str, "TARGET", many=True))  # URIs
    table: str = ""  # the file that names it, if `up` attaches it
    server: OwnServer | None = None  # that nbdattach has started for it
    root: bool = False


@immutable(kw_only=True)
class ConnectOptions(LastingOptions):
    """The options of connect. Sizes in bytes, times in seconds; `connections` 0 means auto.

    `on_loss` is 0 to fail at once, `FOREVER`, or None for the backend's default. `read_write`: an export that is
    read-only is an error. `shared`: it may be attached read-write at another device, too.
    """

    read_only: bool = _flag("read-only")
    read_write: bool = _flag("read-write")
    shared: bool = _flag("shared")
    block_size: int | None = _field(
        None, Option("block-size", option_values.block_size, "SIZE", [*map(str, option_values.BLOCK_SIZES)])
    )
    connections: int = _field(0, Option("connections", option_values.connections, "N|auto", ("auto",), default="auto"))
    retry_for: float = _seconds("retry-for", 0.0)
    tag: str = _field("", Option("tag", str, "NAME"))
    expect_size: int | None = _bytes("expect-size", 0)
    raw_size: int | None = _bytes("size", 1)  # with --no-handshake
    swap: bool = _flag("swap")
    backend: str = _word("backend", option_values.BACKENDS)

    def __post_init__(self) -> None:
        """Raises `Malformed` if the tag is unfit for a line in /sys and for names in /dev, or options conflict."""
        if self.read_only and self.read_write:
            raise Malformed("--read-write", "cannot be combined with --read-only", "leave one of them out")
        if not self.tag.isprintable() or self.tag != self.tag.strip():
            cause = f"{quoted(self.tag)} contains unprintable characters, or blanks at its ends"
            raise Malformed("--tag", cause, "use letters and digits")
        if len(self.tag.encode()) > MAX_TAG:
            raise Malformed("--tag", f"longer than {MAX_TAG} bytes", "use a shorter name")

    @property
    def whole_io_timeout(self) -> int:
        """In whole seconds, as the kernel takes it, rounded up so that a fraction does not become 0."""
        return math.ceil(self.io_timeout)

    def lasting(self) -> dict[str, Any]:
        """The fields of `LastingOptions`, for a record."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(LastingOptions)}


@immutable(kw_only=True)
class TlsOptions:
    """Whether TLS is required, how to verify the server, and our own credentials. A given one requires TLS.

    `ca` is a file or a folder; `psk` a file of pre-shared keys.
    """

    required: bool = _flag("tls")
    ca: str | None = _file("tls-ca")
    cert: str | None = _file("tls-cert")
    key: str | None = _file("tls-key")
    hostname: str | None = _field(None, Option("tls-hostname", str, "NAME"))
    psk: str | None = _file("tls-psk")
    verify: bool = _flag("tls-no-verify", sets=False)


@immutable(kw_only=True)
class ImageOptions:
    """How to serve a disk image. `format` is QEMU's name of it, None to take the image's own. `offset` in bytes.

    With `snapshot` writes go to a file that is deleted at the end. `cache` None is the safe one for the format.
    """

    format: str | None = _field(
        None,
        Option(
            "format",
            functools.partial(option_values.one_of, words=option_values.FORMATS),
            "FORMAT",
            option_values.FORMATS,
        ),
    )
    snapshot: bool = _flag("snapshot")
    cache: str | None = _field(
        None,
        Option(
            "cache",
            functools.partial(option_values.one_of, words=option_values.CACHES),
            f"[{'|'.join(option_values.CACHES)}]",
            option_values.CACHES,
        ),
    )
    discard: str = _word("discard", option_values.DISCARDS)
    offset: int | None = _bytes("offset", 0)


# Of an image for which the user gives none, and in the place of options for what is no image.
USUAL = ImageOptions()


def _named(option: Option, field: dataclasses.Field[Any]) -> Option:
    usual = field.default if option.default is None else option.default
    return option._replace(field=field.name, default=usual)


def options_of(record: type[LastingOptions] | type[TlsOptions] | type[ImageOptions]) -> Mapping[str, Option]:
    """By the names that users type, in the order of the fields."""
    found = (
        _named(field.metadata["option"], field) for field in dataclasses.fields(record) if "option" in field.metadata
    )
    return {option.name: option for option in found}
