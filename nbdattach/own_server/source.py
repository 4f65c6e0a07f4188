# SPDX-License-Identifier: GPL-2.0-or-later
"""A TARGET that needs a server of our own: a disk image, or a command in brackets. Reads the command line and stat(2).

Decisions that matter:
* An image is a path with a slash in it, or a bare name that ends as an image's does (disk.qcow2). Any other bare name
  is a host, even if there is a file of that name: a file in a folder of somebody else must not replace a server.
* A command is a list of words in brackets, as libnbd's tools have it; no shell reads it. As one text, its words are
  quoted as a shell would have them.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Sequence

from nbdattach.connect_options import MAX_TAG
from nbdattach.content.image_format import is_image_name
from nbdattach.errors import Malformed
from nbdattach.immutable import immutable
from nbdattach.protocol.target import Target
from nbdattach.text import plain, quoted, typed

# In the place of a server that has not been started yet.
SOME_SERVER = Target(host="localhost")
_OPEN, _CLOSE = "[", "]"
# HOST:PORT/EXPORT, nbd:/HOST, unix:/PATH, [V6ADDR]/EXPORT, nbd//HOST.
_LIKE_A_SERVER = r"(?i)[^/]*:|nbds?(\+unix)?[^A-Za-z0-9]?//"
# Programs that read a file by such a URL, as plugins of nbdkit.
_PLUGINS = {"http": "curl", "https": "curl", "ftp": "curl", "ftps": "curl", "ssh": "ssh", "sftp": "ssh"}


@immutable
class Source:
    """Either the `path` of an image, without links, or the `words` of a command. `export`: of the command's server.

    `named` is the absolute path that the user gave, for a block device, whose real name may change (/dev/dm-3).
    """

    path: str = ""
    named: str = ""
    words: tuple[str, ...] = ()
    export: str = ""

    @property
    def name(self) -> str:
        """As users name it, and the default tag."""
        return self.named or self.path or one_text(self.words)


def no_tls(source: Source) -> Malformed:
    """The error for TLS with a source."""
    return Malformed("--tls", f"{plain(source.name)} has a server on this machine", "leave out the options of TLS")


def tag_of(source: Source) -> str:
    """The default tag: the source's name and export, unless that is unfit for one."""
    name = "".join(ch for ch in f"{source.name} {source.export}" if ch.isprintable()).strip()
    return name if len(name.encode()) <= MAX_TAG else f"{name[:40]}...{name[-20:]}"


def one_text(words: Sequence[str]) -> str:
    return f"{_OPEN} {shlex.join(words)} {_CLOSE}"


def collapsed(arguments: Sequence[str]) -> list[str]:
    """The command line with each list in brackets as one word. Raises `Malformed`."""
    found: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word.startswith(_OPEN) and word != _OPEN and _CLOSE not in word:
            raise Malformed(quoted(word), "no blank behind the bracket", "write it as [ nbdkit memory 1G ]")
        if word != _OPEN:
            found.append(word)
            continue
        words: list[str] = []
        for inner in rest:
            if inner == _CLOSE:
                break
            words.append(inner)
        else:
            raise Malformed(
                _OPEN, "the bracket is not closed", "write a blank before the closing one: [ nbdkit memory 1G ]"
            )
        found.append(one_text(words))
    return found


def source_of(text: str, export: str | None = None) -> Source | None:
    """None if the text names a server that runs already. Raises `Malformed`."""
    if text.startswith(f"{_OPEN} ") and text.endswith(f" {_CLOSE}"):
        try:
            words = tuple(shlex.split(text[2:-2]))
        except ValueError as error:
            raise Malformed(
                quoted(text), f"the command cannot be read: {error}", "quote its words as for a shell"
            ) from None
        if not words:
            raise Malformed(quoted(text), "no command in the brackets", "write [ nbdkit memory 1G ]")
        return Source(words=words, export=export or "")
    if text.startswith(_OPEN) and text.endswith(_CLOSE) and " " in text:
        raise Malformed(quoted(text), "no blank between a bracket and the command", "write it as [ nbdkit memory 1G ]")
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if scheme in _PLUGINS:
        url = text if text.isprintable() else plain(text)  # not cut
        hint = f"for a file there: {one_text(('nbdkit', _PLUGINS[scheme], url))}; an NBD server is nbd://HOST"
        raise Malformed(quoted(text), f"no NBD URI, but one of {scheme}", hint)
    if scheme == "file":
        raise Malformed(quoted(text), "no NBD URI", f"write {typed(_decoded(text.partition('://')[2]))}")
    image = _image(text)
    if image and export:
        raise Malformed("--export", f"{plain(text)} is an image, which has no exports", "leave it out")
    return image


def may_be_source(text: str) -> bool:
    """Whether `source_of` may find one; told without a look at a disk, which may be away."""
    return text.startswith(f"{_OPEN} ") or may_be_image(text)


def _no_image_hint(text: str) -> str:
    is_path = text.startswith((".", "/")) or is_image_name(os.path.basename(text))
    if is_path or typed(text) != text:  # such a name would have to be encoded in a URI
        return "is the path correct?"
    return f"is the path correct? an export of a server is nbd://{text}"


def _decoded(path: str) -> str:
    """The path of a URL; its host, as in file://HOST/PATH, is left out."""
    from urllib.parse import unquote

    return unquote(path[path.find("/") :]) if "/" in path else path


def source_at(text: str) -> Source:
    """The image of that path, which may have gone."""
    path = os.path.realpath(text)
    try:
        is_device = stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        is_device = text.startswith("/dev/")
    return Source(path=path, named=os.path.abspath(text) if is_device else "")


def may_be_image(text: str) -> bool:
    """Whether the text is the name of an image, and not of a host or a URI."""
    if not text or "\0" in text or ("://" in text and not text.startswith("/")):
        return False
    return "/" in text or is_image_name(text)


def _image(text: str) -> Source | None:
    """The image that the text names, which is there; None if it names no image. Raises `Malformed`."""
    if not may_be_image(text):
        return None
    try:
        # Through a link, QEMU would look for a relative backing file beside the link.
        path = os.path.realpath(text, strict=True)
        mode = os.stat(path).st_mode
    except OSError as error:
        if text.startswith("/") and not is_image_name(os.path.basename(text)):
            return None  # a socket, perhaps of a server that is not there yet
        if re.match(_LIKE_A_SERVER, text):
            return None  # a mistyped one, which the parser of targets explains
        raise Malformed(plain(text), f"no such image: {error.strerror}", _no_image_hint(text)) from None
    if stat.S_ISSOCK(mode):
        if text.startswith("/"):
            return None
        raise Malformed(plain(text), "a socket, which needs its absolute path", f"write {typed(path)}")
    if stat.S_ISBLK(mode) and os.path.basename(path).startswith("nbd"):
        raise Malformed(plain(text), "a device of the nbd driver, not an image", "DEVICE comes after TARGET")
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise Malformed(plain(text), "neither an image nor a socket", "an image is a file or a block device")
    return Source(path=path, named=os.path.abspath(text) if stat.S_ISBLK(mode) else "")
