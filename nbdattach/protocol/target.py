# SPDX-License-Identifier: GPL-2.0-or-later
"""TARGET: a server and its export, as users type them.

`HOST`, `HOST:PORT`, `[V6ADDR]:PORT`, `/unix/socket`, or an NBD URI (NBD specification, doc/uri.md).
Parsing touches nothing but the text (and the working directory, for a relative socket path).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from nbdattach.errors import Malformed
from nbdattach.immutable import immutable
from nbdattach.protocol.constants import DEFAULT_PORT, MAX_STRING
from nbdattach.text import from_wire, plain, quoted, to_wire

_SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix")
_TLS_PARAMETERS = ("tls-certificates", "tls-hostname", "tls-psk-file")
_PARAMETERS = ("socket", *_TLS_PARAMETERS)
# For parameters of libnbd, and for those that only an option of ours can tell.
_OPTIONS = {"tls-verify-peer": "--tls-no-verify"} | {
    f"tls-{of}": f"--tls-{of} FILE" for of in ("ca", "cert", "key", "psk")
}
# A command needs one of these patterns, or none, so each is compiled when it is used.
_HOST = r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?"
_V6 = r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9_.-]+)?"
_DEVICE = r"/dev/nbd[0-9]+(p[0-9]+)?"
_BAD_ESCAPE = r"%(?![0-9A-Fa-f]{2})"
# RFC 3986, section 2.3.
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# sun_path of struct sockaddr_un, less its closing NUL (linux/un.h).
MAX_SOCKET_PATH = 107
_V6_FORM = "write [2001:db8::1]:10809"
_NO_PORT = "not a port"
_SCHEME_WITHOUT_SLASHES = r"(?i)(nbds?|unix|tcp):(?!//)"
_FORMS = "a TARGET is HOST, HOST:PORT, [V6ADDR]:PORT, /path/of/socket or nbd://HOST[:PORT]/EXPORT"

# Characters that a shell does not pass on. "?" and brackets are passed on, unless a file has such a name.
_SPECIAL = frozenset(" '\"\\`$&|;<>()*!{}")

# Options of TLS for which a URI has no place, with their types: fields of `TlsOptions`.
_TRUST = {"ca": str, "cert": str, "key": str, "verify": bool}
Trust: TypeAlias = dict[str, str | bool]


@immutable
class Target:
    """A server (`host` and `port`, or the Unix `socket`), its export, and how to verify the server.

    `tls_ca`, `tls_cert`, `tls_key` and `tls_verify` cannot be in a URI; the others can.
    """

    host: str = ""
    port: int = DEFAULT_PORT
    socket: str = ""
    export: str = ""
    tls: bool = False
    tls_hostname: str = ""
    tls_certificates: str = ""
    tls_psk_file: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_verify: bool = True

    @property
    def server(self) -> str:
        """The URI of the server alone, without an export."""
        return self._uri("")

    @property
    def uri(self) -> str:
        """The canonical URI: two targets with the same one are the same export."""
        return self._uri(_encoded(self.export, "/!$&'()*+,;=:@"))

    @property
    def verified_name(self) -> str:
        """The name that the server's certificate must have; "" if none is known. Without scope and final dot."""
        return self.tls_hostname or self.host.partition("%")[0].removesuffix(".")

    @property
    def trust(self) -> Trust | None:
        """The options of TLS that are not in the URI; None without TLS. `target_of` makes the target of both."""
        return {name: getattr(self, f"tls_{name}") for name in _TRUST} if self.tls else None

    def _uri(self, export: str) -> str:
        scheme = ("nbds" if self.tls else "nbd") + ("+unix" if self.socket else "")
        if self.socket:
            place = "/" + export
        else:
            host = f"[{self.host.replace('%', '%25')}]" if ":" in self.host else self.host
            port = "" if self.port == DEFAULT_PORT else f":{self.port}"
            place = host + port + (f"/{export}" if export else "")
        query = "&".join(f"{key}={_encoded(value, '/')}" for key, value in self._parameters() if value)
        return f"{scheme}://{place}" + (f"?{query}" if query else "")

    def _parameters(self) -> tuple[tuple[str, str], ...]:
        return (
            ("socket", self.socket),
            ("tls-certificates", self.tls_certificates),
            ("tls-hostname", self.tls_hostname),
            ("tls-psk-file", self.tls_psk_file),
        )


def parse_target(text: str, export: str | None = None) -> Target:
    """The target that `text` names; `export` is the value of -N/--export, None without it.

    Raises `Malformed` with the part that is wrong, and with what to write instead if that can be told.
    """
    try:
        return _parsed(text, export)
    except Malformed as error:
        raise _with_remedy(error, text, export) from None


def targets_meant(text: str, export: str | None = None) -> list[str]:
    """Valid targets, fit to be typed, that this invalid one may mean, the likeliest first."""
    from nbdattach.protocol import mistyped

    return [one for one in mistyped.meant(text, export or "") if one != text and _is_valid(one)]


def _with_remedy(error: Malformed, text: str, export: str | None) -> Malformed:
    """The error with the target that may be meant; the same error if we know none that is valid."""
    from nbdattach.protocol import mistyped

    valid = targets_meant(text, export)
    if not valid:
        return error
    some = mistyped.SOME_INTERFACE
    scope = f", with the name of the interface in place of {some}" if some in valid[0] and some not in text else ""
    hint = f"write {', or '.join(valid)}{scope}"
    if error.cause.startswith(_NO_PORT) and not re.match(_SCHEME_WITHOUT_SLASHES, text):
        hint = f"{error.hint}; or {hint}"
    return Malformed(error.thing, error.cause, hint)


def _is_valid(text: str) -> bool:
    """Also fit to be typed in a shell, and to be shown."""
    try:
        _parsed(text, None)
    except Malformed:
        return False
    return plain(text) == text and text.isascii() and not _SPECIAL.intersection(text)


def _parsed(text: str, export: str | None) -> Target:
    if "://" in text and not text.startswith("/"):
        if export is not None:
            raise Malformed(quoted(text), "-N/--export cannot be combined with a URI", "write the export in the URI")
        return _parse_uri(text)
    name = _checked_export(text, export or "")
    if re.fullmatch(_DEVICE, text):
        raise Malformed(quoted(text), "a device of the nbd driver, not a server", "name a server or an image")
    if text.startswith("/"):
        return Target(socket=_checked_socket(text, text), export=name)
    host, port = _parse_address(text, text)
    return Target(host=host, port=port, export=name)


def with_tls(
    target: Target,
    *,
    required: bool = False,
    ca: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    hostname: str | None = None,
    psk: str | None = None,
    verify: bool = True,
) -> Target:
    """The target with the --tls options; each of them means that TLS is required. Raises `Malformed`.

    Paths are made absolute, because the monitor, which reconnects later, has another working directory.
    """
    for name, value in (("ca", ca), ("cert", cert), ("key", key), ("hostname", hostname), ("psk", psk)):
        if value == "":  # perhaps from a variable that is not set; it must not mean "without TLS"
            raise Malformed(f"--tls-{name}", "empty", "give a name, or leave it out")
    if not (required or ca or cert or key or hostname or psk or not verify):
        return target
    if key and not cert:
        raise Malformed("--tls-key", "a key without its certificate", "give --tls-cert FILE, too")
    if psk and (ca or cert):
        raise Malformed("--tls-psk", "a pre-shared key cannot be combined with certificates", "give one or the other")
    return replace(
        target,
        tls=True,
        tls_ca=_absolute(ca),
        tls_cert=_absolute(cert),
        tls_key=_absolute(key),
        tls_hostname=hostname or target.tls_hostname,
        tls_psk_file=_absolute(psk) or target.tls_psk_file,
        tls_verify=verify,
    )


def others(target: Target, texts: Sequence[str]) -> list[Target]:
    """Other servers of the same export, with the target's options of TLS. Raises `Malformed`.

    One that is no URI has the target's export, and TLS if the target has it.
    """
    found: list[Target] = []
    for text in texts:
        one, thing = parse_target(text), f"--also {plain(text)}"
        if "://" not in text:
            one = replace(one, export=target.export, tls=target.tls)
        if target.tls and not one.tls:
            raise Malformed(thing, "not encrypted, but the TARGET is", "use nbds://")
        if one.export != target.export:
            cause = f"it is the export {quoted(one.export)}, but the TARGET is {quoted(target.export)}"
            raise Malformed(thing, cause, "all servers must have the same export name")
        if one.tls:
            one = replace(
                one,
                tls_ca=target.tls_ca,
                tls_cert=target.tls_cert,
                tls_key=target.tls_key,
                tls_verify=target.tls_verify,
                tls_hostname=one.tls_hostname or target.tls_hostname,
                tls_psk_file=one.tls_psk_file or target.tls_psk_file,
            )
        if one.uri in (target.uri, *(other.uri for other in found)):
            raise Malformed(thing, "this server is named already", "leave it out")
        found.append(one)
    return found


def target_of(uri: str, trust: Trust | None) -> Target:
    """The target with that URI and those options of TLS, from a record or a request. Raises `Malformed`."""
    target = parse_target(uri)
    if not trust:
        return target
    if any(type(value) is not _TRUST.get(name) for name, value in trust.items()):
        raise Malformed(
            target.uri, f"its record has unknown TLS options: {trust}", "disconnect it, and connect it again"
        )
    given = {name: value for name, value in trust.items() if value != ""}
    return with_tls(target, required=target.tls, **given)  # type: ignore[arg-type]


def _absolute(path: str | None) -> str:
    if not path:
        return ""
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise Malformed(
            quoted(path), "a relative path, and the working directory is gone", "write the absolute path"
        ) from None


def _parse_address(text: str, address: str) -> tuple[str, int]:
    """`HOST`, `HOST:PORT` or `[V6ADDR]:PORT` out of `text`."""
    if not address:
        raise Malformed(quoted(text), "no host in it", _FORMS)
    if "/" in address:
        hint = "the path of a socket begins with /" if address.startswith(".") else _FORMS
        raise Malformed(quoted(text), "neither a host nor the absolute path of a socket", hint)
    if address.startswith("["):
        host, closed, rest = address[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise _no_v6(text)
        return _checked_v6(text, host), checked_port(text, rest[1:] if rest else None)
    if address.count(":") > 1:
        raise Malformed(quoted(text), "more than one colon", _V6_FORM if re.fullmatch(_V6, address) else _FORMS)
    host, colon, port = address.partition(":")
    if not re.fullmatch(_HOST, host):
        which = "" if host == text else f": {quoted(host)}"
        raise Malformed(quoted(text), f"not a host name{which}", _FORMS)
    if re.fullmatch("[0-9]{1,5}", host):  # to inet_aton(3) it would be the address 0.0.42.57
        hint = f"write localhost:{text}" if text == host else _FORMS
        raise Malformed(quoted(text), f"a number, not a host{'' if host == text else f': {quoted(host)}'}", hint)
    return host.lower(), checked_port(text, port if colon else None)


def _checked_v6(text: str, host: str) -> str:
    """The address in its one canonical form, with its scope."""
    import ipaddress  # most targets are names

    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        raise _no_v6(text) from None
    if address.is_link_local and not address.scope_id:  # the kernel refuses to connect (EINVAL)
        raise Malformed(quoted(text), "a link-local address without its interface", "write [fe80::1%eth0]:10809")
    return str(address)


def _no_v6(text: str) -> Malformed:
    return Malformed(quoted(text), "not an IPv6 address in brackets", _V6_FORM)


def checked_port(text: str, port: str | None) -> int:
    """The port; the default one if it is None. Raises `Malformed` about `text`, of which it is a part."""
    if port is None:
        return DEFAULT_PORT
    if port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536:
        return int(port)
    raise Malformed(quoted(text), f"{_NO_PORT}: {quoted(port)}", "a port is a number from 1 to 65535")


def _parse_uri(text: str) -> Target:
    if "#" in text:
        raise Malformed(quoted(text), "a URI with a fragment", "write # as %23")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise Malformed(quoted(text), "a URI can contain only printable ASCII characters", "write others as %XX")
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    _check_scheme(text, scheme)
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    given = _parse_query(text, query)
    tls = scheme.startswith("nbds")
    if not tls and any(key in given for key in _TLS_PARAMETERS):
        raise Malformed(quoted(text), f"TLS parameters on {scheme}://", f"write {scheme.replace('nbd', 'nbds', 1)}://")
    target = _place(text, scheme, authority, given.get("socket"))
    return Target(
        host=target.host,
        port=target.port,
        socket=target.socket,
        export=_checked_export(text, _decoded(text, path)),
        tls=tls,
        tls_hostname=given.get("tls-hostname", ""),
        tls_certificates=_absolute(given.get("tls-certificates", "")),
        tls_psk_file=_absolute(given.get("tls-psk-file", "")),
    )


def _check_scheme(text: str, scheme: str) -> None:
    if scheme in _SCHEMES:
        return
    if scheme in ("nbd+vsock", "nbds+vsock"):
        raise Malformed(
            quoted(text), "the kernel's nbd driver supports only TCP and Unix stream sockets, not vsock", _FORMS
        )
    raise Malformed(quoted(text), f"unknown scheme {quoted(scheme)}", f"one of: {', '.join(_SCHEMES)}")


def _parse_query(text: str, query: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for item in query.split("&") if query else ():
        key, _, value = item.partition("=")
        if key not in _PARAMETERS:
            hint = f"known parameters: {', '.join(_PARAMETERS)}"
            if key in _OPTIONS:
                hint = f"use the option {_OPTIONS[key]}"
            raise Malformed(quoted(text), f"unknown parameter {quoted(key)}", hint)
        if key in given:
            raise Malformed(quoted(text), f"parameter {key} is given twice", "give it once")
        given[key] = _decoded(text, value)
        if not given[key]:
            raise Malformed(quoted(text), f"parameter {key} is empty", f"write {key}=VALUE")
        if "\0" in given[key] and key != "socket":
            raise Malformed(quoted(text), f"parameter {key} contains NUL", "leave out %00")
    return given


def _place(text: str, scheme: str, authority: str, path: str | None) -> Target:
    """The server of a URI: its host and port, or its socket."""
    if scheme.endswith("+unix"):
        if authority:
            raise Malformed(
                quoted(text), f"{scheme}:// takes no host", f"write {scheme}:///EXPORT?socket=/PATH, with three slashes"
            )
        if path is None:
            raise Malformed(quoted(text), "no socket parameter", f"write {scheme}:///EXPORT?socket=/PATH")
        return Target(socket=_checked_socket(text, path))
    if path is not None:
        raise Malformed(
            quoted(text), f"a socket parameter on {scheme}://", f"write {scheme}+unix:///EXPORT?socket=/PATH"
        )
    if "@" in authority:
        raise Malformed(quoted(text), "user names in a URI are not supported", "leave out the part before the @")
    host, port = _parse_address(text, _decoded(text, authority))
    return Target(host=host, port=port)


def _decoded(text: str, part: str) -> str:
    if re.search(_BAD_ESCAPE, part):
        raise Malformed(quoted(text), "a % that is not followed by two hexadecimal digits", "write % as %25")
    if "%" not in part:
        return from_wire(part.encode())
    from urllib.parse import unquote_to_bytes

    return from_wire(unquote_to_bytes(part))


def _encoded(text: str, safe: str) -> str:
    """Percent-encoded but for unreserved characters and those in `safe`."""
    if _UNRESERVED.union(safe).issuperset(text):
        return text
    from urllib.parse import quote  # a twentieth of all that a command imports, and few names need it

    return quote(to_wire(text), safe=safe)


def _checked_export(text: str, name: str) -> str:
    if "\0" in name:
        raise Malformed(quoted(text), "an export name cannot contain NUL", "leave out %00")
    if len(to_wire(name)) > MAX_STRING:
        raise Malformed(
            quoted(text), f"the export name is longer than {MAX_STRING} bytes", "no NBD server accepts a longer one"
        )
    return name


def _checked_socket(text: str, path: str) -> str:
    """`path`, made absolute, because the monitor has another working directory. A leading NUL means abstract."""
    if "\0" in path[1:] or path in ("", "\0"):
        raise Malformed(
            quoted(text), "not a socket path", "write /run/nbd.sock, or %00NAME in a URI for an abstract one"
        )
    try:
        absolute = path if path.startswith("\0") else os.path.abspath(path)
    except FileNotFoundError:
        raise Malformed(
            quoted(text), "a relative path, and the working directory is gone", "write the absolute path"
        ) from None
    if len(os.fsencode(absolute)) > MAX_SOCKET_PATH:
        raise Malformed(quoted(text), f"the socket's path is longer than {MAX_SOCKET_PATH} bytes", "use a shorter one")
    return absolute
