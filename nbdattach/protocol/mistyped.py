# SPDX-License-Identifier: GPL-2.0-or-later
"""TARGETs that a mistyped one may mean, to show in a hint; nothing is ever connected to by such a guess. No I/O.

It knows the habits of other programs: nbd:HOST:PORT:exportname=X and nbd:unix:/PATH of QEMU, unix:/PATH, HOST:/EXPORT
as of NFS, IPv6 addresses without brackets. Only `target` imports it, when a TARGET is invalid.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from urllib.parse import quote

from nbdattach.text import from_wire

# A mistyped scheme, the slashes behind it, and the rest.
_SCHEME = re.compile(
    r"(?si)(nbds?\+unix|nbd[+-](?:tcp|tls|ssl)|nbds?|ndb|tcp|unix|https?)(?:[:;]+([/\\]*)|([/\\]{2,}))(.*)"
)
_MEANS = {"ndb": "nbd", "tcp": "nbd", "nbd+tcp": "nbd", "nbd+tls": "nbds", "nbd+ssl": "nbds", "unix": "nbd+unix"}
_MEANS |= {"http": "nbd", "https": "nbds"}
_EXPORT_NAME = re.compile(r"(?s)(.*):exportname=(.*)")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_NAMES_OF_EXPORT = ("export", "exportname", "name")
_TLS_PARAMETERS = ("tls-certificates", "tls-hostname", "tls-psk-file")
SOME_INTERFACE = "eth0"


def meant(text: str, export: str = "") -> Iterator[str]:
    """Texts to type in the place of `text`, the likeliest first; the caller finds out which ones are valid.

    `export` is the value of -N, which cannot be combined with a URI.
    """
    text = text.strip()
    found = _SCHEME.fullmatch(text)
    if not found:
        if "://" not in text:  # of an unknown scheme no part is a host
            yield from _without_scheme(text)
        return
    name, slashes, rest = found[1].lower().replace("-", "+"), (found[2] or found[3] or "").replace("\\", "/"), found[4]
    scheme = _MEANS.get(name, name)
    if scheme == "nbd" and not slashes and rest.startswith("unix:"):
        yield from meant(rest)
    elif scheme.endswith("+unix"):
        yield from _socket(scheme, slashes, rest, export, plain=name == "unix")
    else:
        yield from _server(scheme, slashes, rest, export)


def _socket(scheme: str, slashes: str, rest: str, export: str, plain: bool) -> Iterator[str]:
    """A URI of a Unix socket; or just its path, if the text was `plain` unix:PATH."""
    body, _, query = rest.partition("?")
    parameters = _parameters(query)
    socket, name = parameters.pop("socket", ""), export
    if socket:
        name = name or _decoded(body.rpartition("/")[2])
    else:
        named = _EXPORT_NAME.fullmatch(body)
        path, name = (named[1], named[2]) if named else (body, name)
        if len(slashes) == 3 and "/" not in path and not named and not plain:
            yield f"{scheme}:///{path}?socket=/PATH"
            return
        socket = f"/{path}" if slashes and path else path
    if plain and socket.startswith("/") and not name:
        yield socket
    elif socket:
        yield _uri(scheme, "", name, {"socket": socket, **parameters})


def _server(scheme: str, slashes: str, rest: str, export: str) -> Iterator[str]:
    """A URI of a server."""
    body, mark, query = rest.partition("?")
    parameters = _parameters(query) if mark else {}
    named = _EXPORT_NAME.fullmatch(body)
    body, name = (named[1], named[2]) if named else (body, "")
    if len(slashes) == 3 and "/" not in body:
        authority, path = "HOST", body
    else:
        authority, _, path = body.replace("\\", "/").lstrip("/").partition("/")
    if "socket" in parameters:
        socket = parameters.pop("socket")
        yield _uri(f"{scheme}+unix", "", export or _decoded(path), {"socket": socket, **parameters})
        return
    for key in (*_NAMES_OF_EXPORT, "tls", "tls-type"):
        value = parameters.pop(key, "")
        name = value if value and key in _NAMES_OF_EXPORT else name
        scheme = "nbds" if value and key not in _NAMES_OF_EXPORT else scheme
    scheme = "nbds" if any(key in _TLS_PARAMETERS for key in parameters) else scheme
    for host, port, more in _addresses(authority):
        place = f"{_in_uri(host)}:{port}" if port else _in_uri(host)
        yield _uri(scheme, place, export or name or _decoded(path) or more, parameters)


def _without_scheme(text: str) -> Iterator[str]:
    """HOST:PORT as typed by a person that adds an export; the address of IPv6 without brackets."""
    authority, _, path = text.partition("/")
    for host, port, more in _addresses(authority):
        name = path or more
        if name or "%25" in host:
            yield _uri("nbd", f"{_in_uri(host)}:{port}" if port else _in_uri(host), name, {})
        else:
            yield f"{host}:{port}" if port else host


def _addresses(authority: str) -> Iterator[tuple[str, str, str]]:
    """Host, port and export that the text may mean; the host with brackets if it needs them."""
    authority = authority.rpartition("@")[2].strip()
    six = [*_of_ipv6(authority)]
    if six or authority.startswith("["):
        yield from six
        return
    host, *more = re.split("[:, ]+", authority)
    port = more.pop(0) if more and more[0].isdigit() else ""
    name = more.pop(0).removeprefix("exportname=") if more else ""
    if name and not name[0].isalpha():
        return
    if not more and (_HOST.fullmatch(host) or (not host and port)):
        yield host or "localhost", port, name


def _of_ipv6(text: str) -> Iterator[tuple[str, str, str]]:
    inner, closed, after = text.removeprefix("[").partition("]")
    address, percent, scope = inner.partition("%")
    scope = scope.removeprefix("25") or scope
    port, name = after.lstrip(":"), ""
    if not closed:
        scope, _, port = scope.partition(":")
    if port and not port.isdigit():
        if not port[0].isalpha():
            return
        port, name = "", port.removeprefix("exportname=")
    head, _, tail = address.rpartition(":")
    if _is_ipv6(address):
        yield _bracketed(address, scope), port, name
    if not percent and not closed and _is_ipv6(head) and re.fullmatch("[1-9][0-9]{1,4}", tail):
        yield _bracketed(head, ""), tail, ""


def _bracketed(address: str, scope: str) -> str:
    if not scope and ipaddress.IPv6Address(address).is_link_local:
        scope = SOME_INTERFACE
    return f"[{address}%{scope}]" if scope else f"[{address}]"


def _is_ipv6(address: str) -> bool:
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return True


def _parameters(query: str) -> dict[str, str]:
    pairs = [item.partition("=") for item in query.split("&") if item]
    found = {key: _decoded(value) for key, _, value in pairs}
    return found if len(found) == len(pairs) else {"given twice": ""}  # which makes the target invalid


def _decoded(text: str) -> str:
    """A % that begins no escape stands for itself."""
    pieces = re.split("((?:%[0-9A-Fa-f]{2})+)", text)
    return "".join(
        from_wire(bytes.fromhex(piece.replace("%", ""))) if at % 2 else piece for at, piece in enumerate(pieces)
    )


def _in_uri(host: str) -> str:
    return host.replace("%", "%25")


def _uri(scheme: str, place: str, export: str, parameters: dict[str, str]) -> str:
    query = "&".join(f"{key}={_encoded(value, '/')}" for key, value in parameters.items())
    name = _encoded(export, "/+,=:@")
    slash = "/" if name or not place else ""
    return f"{scheme}://{place}{slash}{name}" + (f"?{query}" if query else "")


def _encoded(text: str, safe: str) -> str:
    return quote(text, safe=safe, errors="surrogateescape")
