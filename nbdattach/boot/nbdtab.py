# SPDX-License-Identifier: GPL-2.0-or-later
"""The text of /etc/nbdtab: the exports to attach, with their devices and options. No I/O.

A line is DEVICE HOST EXPORT [OPTION[,OPTION...]], as nbdtab(5) of nbd-client has it. HOST may be an NBD URI, or the
path of a disk image, whose EXPORT is "-". The options may be those of connect by their long names. A mistake is an
error with line and column; nothing is guessed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from nbdattach.connect_options import USUAL, ConnectOptions, ImageOptions, Option, TlsOptions, options_of
from nbdattach.device import Device, parse_device
from nbdattach.errors import Malformed
from nbdattach.immutable import immutable
from nbdattach.protocol.target import MAX_SOCKET_PATH, Target, checked_port, others, parse_target, with_tls
from nbdattach.text import plain, quoted

_FIELD = re.compile(r"[^ \t]+")
_FIELDS = "a line is DEVICE HOST EXPORT [OPTION,...]"
_LEFT_TO_URI = _NO_EXPORT = "-"
# Relative paths: the working directory at boot differs from a shell's. A NUL begins an abstract socket's name.
_RELATIVE = re.compile(r"[?&](socket|tls-certificates|tls-psk-file)=(?!/|%2[Ff]|%00)")
_OPTIONS = "see nbdtab(5) for the options"
_V6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9_.-]+)?", re.ASCII)


@immutable
class Entry:
    """One line: the target to attach at the device. `says_retry`: the line has retry-for, even if it is 0.

    If HOST may be an image, `image` is its path, and `target` is the server if it turns out to be a socket.
    """

    line: int
    device: Device
    target: Target
    options: ConnectOptions
    says_retry: bool = False
    image: str = ""
    image_options: ImageOptions = USUAL


@immutable
class Mistake:
    """Why a line is invalid. `device` is the line's, None if not even that can be read."""

    line: int
    device: Device | None
    error: Malformed


@immutable
class Table:
    """The valid lines of a table, and the mistakes in all others."""

    entries: tuple[Entry, ...]
    mistakes: tuple[Mistake, ...]


def parse(text: str, name: str) -> Table:
    """Parses the text of a table; `name` is the file's, for errors."""
    lines = [_Line(name, number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1)]
    entries: list[Entry] = []
    mistakes: list[Mistake] = []
    taken: dict[Device | str, int] = {}  # by which line
    for line in lines:
        if line.fields:
            entry = line.entry(taken)
            entries += [entry] if entry else []
            mistakes += [Mistake(line.number, line.device, error) for error in line.mistakes]
    doubtful = {mistake.device for mistake in mistakes}
    return Table(tuple(entry for entry in entries if entry.device not in doubtful), tuple(mistakes))


@immutable
class _Word:
    """A piece of a line, and where it begins: columns count from 1."""

    text: str
    column: int


def as_option(hint: str) -> str:
    """A hint about options of the command line, with the options as they are written in a table."""

    def written(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name not in NAMES_OF_CONNECT:
            return found[0]
        option = _KNOWN[name]
        takes_it = option.parse and value and (value.isupper() or value.isdigit() or value in option.words)
        return f"{name}={value}" if takes_it else f"{name}{' ' * bool(value)}{value or ''}"

    return re.sub(r"--([a-z]+(?:-[a-z]+)*)(?: (\w+))?", written, hint)


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path")
    return text


# By connect's long names. Options that are no property of an attachment are left out: -f, --json, -N.
_CONNECT = options_of(ConnectOptions)
_TRUST = {
    name: option._replace(parse=_path) if option.kind == "FILE" else option
    for name, option in options_of(TlsOptions).items()
}
# How the server is reached: these change the target.
_PLACE = {
    "port": Option("port", str),
    "unix": Option("unix"),
    "no-handshake": Option("no-handshake"),
}
# Options of nbd-client that change nothing, because we always do so.
_NOTHING = {"persist": Option("persist"), "no_optgo": Option("no_optgo")}
_IMAGE = options_of(ImageOptions)
_NOT_FOR_IMAGES = (*_TRUST, "tls-transport", "also", "swap", "no-handshake", "port")
_KNOWN = {**_CONNECT, **_IMAGE, **_TRUST, **_PLACE, **_NOTHING}
# nbd-client's name: ours.
_ALIASES = {
    "bs": "block-size",
    "conns": "connections",
    "timeout": "io-timeout",
    "dead-timeout": "on-loss",
    "certfile": "tls-cert",
    "keyfile": "tls-key",
    "cacertfile": "tls-ca",
    "tlshostname": "tls-hostname",
    "preinit": "no-handshake",
}
# What fstab(5) calls ours; only for hints.
_OF_FSTAB = {"ro": "read-only", "rw": "read-write"}
NAMES_OF_CONNECT = {*_CONNECT, *_IMAGE, *_TRUST, "no-handshake"}
NAMES_OF_NBD_CLIENT = {*_ALIASES, *_NOTHING, "port", "unix", "swap", "tls"}


class _Line:
    """Reads one line."""

    def __init__(self, name: str, number: int, text: str) -> None:
        self._name = name
        self.number = number
        self._end = _Word("", len(text) + 1)
        self.fields: list[_Word] = []
        for found in _FIELD.finditer(text):
            if found[0].startswith("#"):
                break
            self.fields.append(_Word(found[0], found.start() + 1))
        self.device: Device | None = None
        self.mistakes: list[Malformed] = []
        self._given: dict[str, tuple[_Word, Any]] = {}

    def error(self, where: _Word, cause: str, hint: str) -> Malformed:
        return Malformed(f"{plain(self._name)}:{self.number}:{where.column}", cause, hint)

    def entry(self, taken: dict[Device | str, int]) -> Entry | None:
        """None if there are mistakes. `taken` maps a device or tag to the line that names it first."""
        target, options, image_options = None, None, USUAL
        with self._noted():
            self._require_readable()
            self.device = self._at(self.fields[0], lambda: parse_device(self.fields[0].text))
            self._claim(self.device, self.device.name, self.fields[0], taken)
            self._require_whole()
            for word in self._option_words():
                with self._noted():
                    self._take(word)
            with self._noted():
                target = self._trusted(self._target())
            with self._noted():
                options = self._connect_options(taken)
            if target and options and options.also and not self._may_be_image:
                with self._noted():
                    options = self._with_others(target, options)
            with self._noted():
                image_options = self._image_options()
        if self.mistakes or not (self.device and target and options):
            return None
        image = self.fields[1].text if self._may_be_image else ""
        return Entry(self.number, self.device, target, options, "retry-for" in self._given, image, image_options)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Notes a mistake and goes on, so that all of them are reported."""
        try:
            yield
        except Malformed as error:
            self.mistakes.append(error)

    def _claim(self, key: Device | str, name: str, where: _Word, taken: dict[Device | str, int]) -> None:
        if key in taken:
            raise self.error(where, f"{name} is in line {taken[key]} already", "leave out one")
        taken[key] = self.number

    def _connect_options(self, taken: dict[Device | str, int]) -> ConnectOptions:
        arguments = self._arguments(_CONNECT)
        self._require_size_without_handshake()
        where = self._given["tag"][0] if "tag" in self._given else self.fields[0]
        options: ConnectOptions = self._at(where, lambda: ConnectOptions(**arguments))
        if options.tag:
            self._claim(options.tag, f"the tag {quoted(options.tag)}", where, taken)
        return options

    def _image_options(self) -> ImageOptions:
        for name in _NOT_FOR_IMAGES if self._may_be_image else ():
            if name in self._given:
                where = self._given[name][0]
                raise self.error(where, f"option {where.text.partition('=')[0]} is not for an image", "leave it out")
        arguments = self._arguments(_IMAGE)
        if arguments and not self._may_be_image:
            name = next(name for name in _IMAGE if name in self._given)
            cause = f"option {name} is for an image, whose line is DEVICE /PATH -"
            raise self.error(self._given[name][0], cause, "leave it out for a server")
        options: ImageOptions = self._at(self.fields[0], lambda: ImageOptions(**arguments))
        return options

    def _with_others(self, target: Target, options: ConnectOptions) -> ConnectOptions:
        named = self._at(self._given["also"][0], lambda: others(target, options.also))
        return replace(options, also=tuple(one.uri for one in named))

    def _require_readable(self) -> None:
        for field in self.fields:
            for position, ch in enumerate(field.text):
                if not (ch.isprintable() or "\udc80" <= ch <= "\udcff"):
                    where = _Word(ch, field.column + position)
                    raise self.error(where, f"an invisible character: {quoted(ch)}", "write %XX in a URI")

    def _require_whole(self) -> None:
        if len(self.fields) == 1:
            raise self.error(self._end, "no host", _FIELDS)
        if len(self.fields) == 2 and not self._is_uri:
            raise self.error(self._end, "no export", f"{_FIELDS}; or name the export in a URI: nbd://HOST/EXPORT")
        if len(self.fields) > 4:
            raise self.error(self.fields[4], "a fifth field", f"{_FIELDS}; no blanks between options")

    @property
    def _may_be_image(self) -> bool:
        """An absolute path without an export; only the file itself can tell whether it is an image or a socket."""
        fields = [field.text for field in self.fields[1:3]]
        return len(fields) == 2 and fields[0].startswith("/") and fields[1] == _NO_EXPORT and "unix" not in self._given

    @property
    def _is_uri(self) -> bool:
        host = self.fields[1].text
        return "://" in host and not host.startswith("/")

    def _at(self, where: _Word, parse: Callable[[], Any], say_what: bool = True) -> Any:
        """The result of `parse`; an error names the place in the file, and with `say_what` also its own subject."""
        try:
            return parse()
        except Malformed as error:
            if error.thing.startswith("--"):  # options have no dashes here
                raise self.error(where, str(error).replace("--", ""), error.hint.replace("--", "")) from None
            hint = error.hint.replace("option --", "option ")
            if _RELATIVE.search(hint):
                hint = "write the absolute path of the socket"
            raise self.error(where, str(error) if say_what else error.cause, hint) from None

    # -- options -------------------------------------------------------------------------------------------------

    def _option_words(self) -> Iterator[_Word]:
        if len(self.fields) < 4:
            return
        column = self.fields[3].column
        for text in self.fields[3].text.split(","):
            yield _Word(text, column)
            column += len(text) + 1

    def _take(self, word: _Word) -> None:
        name, equals, value = word.text.partition("=")
        if name.startswith("_"):
            return
        if not name:
            raise self.error(word, "an option without a name", "separate options by one comma")
        own = _ALIASES.get(name, name)
        if own not in _KNOWN:
            raise self._unknown(word, name)
        if own in self._given and not _KNOWN[own].many:
            there = self._given[own][0]
            first = there.text.partition("=")[0]
            known_as = f"{first} at column {there.column}"
            cause = f"option {name} is given twice" if first == name else f"option {name} means the same as {known_as}"
            raise self.error(word, cause, "leave out one")
        option = _KNOWN[own]
        if option.parse is None:
            if equals:
                raise self.error(word, f"option {name} takes no value", f"write {name}")
            self._given[own] = (word, option.flag)
            return
        if not value:
            raise self.error(word, f"option {name} without a value", f"write {name}=VALUE")
        if name == "dead-timeout":
            value = f"wait:{value}"
        before = self._given[own][1] if own in self._given else ()
        self._given[own] = (word, value)
        try:
            parsed = option.parse(value)
            self._given[own] = (word, (*before, parsed) if option.many else parsed)
        except ValueError as error:
            example = getattr(error, "example", "").removeprefix("wait:" * (name == "dead-timeout"))
            hint = f"try {name}={example}; {_OPTIONS}" if example else _OPTIONS
            if "#" in value:
                hint = "write a blank before the # of a comment"
            raise self.error(word, f"option {name}: {plain(str(error))}", hint) from None

    def _unknown(self, word: _Word, name: str) -> Malformed:
        if name == "sdp":
            return self.error(word, "the Socket Direct Protocol is not supported", "leave it out for TCP")
        if name == "export":
            return self.error(word, "the export is not an option", "it is the third field")
        from difflib import get_close_matches

        meant = _OF_FSTAB.get(name) or "".join(get_close_matches(name, [*_KNOWN, *_ALIASES], 1, cutoff=0.75))
        hint = f"did you mean {meant}? {_OPTIONS}" if meant else f"{_OPTIONS}; _NAME is ignored"
        return self.error(word, f"unknown option {quoted(name)}", hint)

    def _arguments(self, options: Mapping[str, Option]) -> dict[str, Any]:
        return {option.field: self._given[name][1] for name, option in options.items() if name in self._given}

    def _require_size_without_handshake(self) -> None:
        none, size = self._given.get("no-handshake"), self._given.get("size")
        if none and not size:
            raise self.error(
                none[0], f"option {none[0].text} needs size=SIZE", "the server does not announce the size then"
            )
        if size and not none and not self._may_be_image:
            raise self.error(size[0], "option size needs no-handshake", "otherwise the server announces the size")

    # -- the target ----------------------------------------------------------------------------------------------

    def _target(self) -> Target:
        if self._is_uri:
            return self._uri_target()
        if self._may_be_image and len(os.fsencode(self.fields[1].text)) > MAX_SOCKET_PATH:
            return Target(socket="/")
        host, export = self.fields[1], self.fields[2]
        port, unix = self._given.get("port"), self._given.get("unix")
        if host.text.startswith("/") or unix:
            if not host.text.startswith("/"):
                raise self.error(host, f"{quoted(host.text)} is not the absolute path of a socket", "it begins with /")
            if port:
                raise self.error(port[0], "a Unix socket has no port", "leave it out")
            return self._checked(host, export)
        target = self._checked(self._bracketed(host), export)
        if port:
            return replace(target, port=self._port(host, port[0]))
        return target

    def _bracketed(self, host: _Word) -> _Word:
        return _Word(f"[{host.text}]", host.column) if _V6.fullmatch(host.text) else host

    def _checked(self, host: _Word, export: _Word) -> Target:
        target: Target = self._at(host, lambda: parse_target(host.text))
        if "," in export.text or "=" in export.text:
            cause = f"{quoted(export.text)} looks like options, but this field is the export"
            raise self.error(export, cause, "if it is the export, write it in a URI: nbd://HOST/EXPORT")
        return self._with_export(target, export)

    def _with_export(self, target: Target, export: _Word) -> Target:
        self._at(export, lambda: parse_target("localhost", export.text), say_what=False)
        return replace(target, export=export.text)

    def _port(self, host: _Word, word: _Word) -> int:
        if ":" in host.text.rpartition("]")[2] and not _V6.fullmatch(host.text):
            raise self.error(word, f"a second port: {quoted(host.text)} has one already", "leave out one")
        number = word.text.partition("=")[2]
        port: int = self._at(word, lambda: checked_port(number, number), say_what=False)
        return port

    def _uri_target(self) -> Target:
        uri = self.fields[1]
        for name in ("port", "unix"):
            if name in self._given:
                raise self.error(
                    self._given[name][0], f"option {name} cannot be combined with a URI", "write it in the URI"
                )
        for found in _RELATIVE.finditer(uri.text):
            where = _Word(found[1], uri.column + found.start(1))
            raise self.error(where, f"parameter {found[1]}: not an absolute path", "it begins with /")
        target: Target = self._at(uri, lambda: parse_target(uri.text))
        export = self.fields[2] if len(self.fields) > 2 else None
        if export is None or export.text == _LEFT_TO_URI:
            return target
        if target.export:
            raise self.error(export, f"a second export: the URI names {quoted(target.export)}", "write - instead")
        return self._with_export(target, export)

    def _trusted(self, target: Target) -> Target:
        arguments = self._arguments(_TRUST)
        if not arguments:
            return target
        where = next(self._given[name][0] for name in ("tls-psk", "tls-key", *_TRUST) if name in self._given)
        trusted: Target = self._at(where, lambda: with_tls(target, **arguments))
        return trusted
