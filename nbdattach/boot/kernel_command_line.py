# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's command line: the export and the device of the root file system. No I/O.

It reads nbdroot=, nbddev= and root=/dev/nbdN as Debian's nbd-client does, and root=nbd:SERVER:EXPORT as dracut does.
Both may have an NBD URI instead. nbdopts= has the options of connect, as the fourth field of nbdtab(5).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from nbdattach.boot import nbdtab
from nbdattach.connect_options import FOREVER, ConnectOptions
from nbdattach.device import Device
from nbdattach.errors import Malformed
from nbdattach.immutable import immutable
from nbdattach.protocol.target import Target
from nbdattach.text import plain, quoted

DEFAULT_DEVICE = "nbd0"
# Seconds to wait for a server that boots together with this machine.
RETRY_FOR = 300
_URI = re.compile(r"nbds?://")
_FORMS = "nbdroot=nbd://HOST/EXPORT, nbdroot=HOST,EXPORT,nbd0 or root=nbd:HOST:EXPORT"
_DEVICE = re.compile(r"(?:/dev/)?(nbd[0-9]+)(p[0-9]+)?", re.ASCII)
# dracut.cmdline(7): nbd:SERVER:EXPORT[:FSTYPE[:ROOTFLAGS[:OPTIONS]]]; a server with colons is in brackets.
_DRACUT = re.compile(r"nbd:(\[[^]]*\]|[^:]*):([^:]*)(?::([^:]*))?(?::([^:]*))?(?::(.*))?")


@immutable
class Root:
    """The target, its device, and how the initramfs mounts it; a field is empty if another option tells that."""

    device: Device
    target: Target
    options: ConnectOptions
    root: str = ""  # the device node
    fstype: str = ""
    flags: str = ""


@dataclass(slots=True)
class _Words:
    """The words that we use; if one is given twice, the last one counts, as for the kernel."""

    root: str = ""
    nbdroot: str = ""
    nbddev: str = ""
    nbdopts: str = ""


def parse(line: str, dhcp: Mapping[str, str]) -> Root | None:
    """None if the root is not to be on NBD. `dhcp` has ROOTSERVER and ROOTPATH, if the DHCP server sent them.

    Raises `Malformed`.
    """
    words = _words(line)
    uri, dracut = _URI.match(words.root), _DRACUT.fullmatch(words.root)
    if words.root.startswith(("nbd:", "nbds:")) and not (uri or dracut):
        raise Malformed(f"root={plain(words.root)}", "neither a URI nor nbd:HOST:EXPORT", _FORMS)
    if not (words.nbdroot or words.nbddev or uri or dracut):
        return None
    if uri:
        return _root(words, DEFAULT_DEVICE, f"{words.root} -", made=True)
    if dracut:
        server, export, fstype, flags, options = (part or "" for part in dracut.groups())
        words.nbdopts = ",".join(filter(None, (options, words.nbdopts)))
        place = _place_by_port(_server(server, dhcp), export)
        return replace(_root(words, DEFAULT_DEVICE, place, made=True), fstype=fstype, flags=flags)
    return _debian(words, dhcp)


def _words(line: str) -> _Words:
    words = _Words()
    for word in line.split():
        name, _, value = word.strip('"').partition("=")  # as the kernel has them, and nothing of ours has a blank in it
        value = value.lstrip('"')
        if name in ("root", "nbdroot", "nbddev", "nbdopts"):
            setattr(words, name, value)
    for name in ("root", "nbdroot", "nbddev"):
        if getattr(words, name).startswith(("nbd", "/dev/nbd")) or name != "root":  # another root may be anything
            _refuse_more_than_a_word(name, getattr(words, name))
    if words.nbdopts.startswith("#"):
        raise Malformed(f"nbdopts: {quoted(words.nbdopts)}", "begins with #, like a comment", "remove the #")
    return words


def _debian(words: _Words, dhcp: Mapping[str, str]) -> Root:
    text = _told(dhcp, "ROOTPATH") if words.nbdroot in ("", "dhcp") else words.nbdroot
    device = words.nbddev or (words.root if _DEVICE.fullmatch(words.root) else "")
    if _URI.match(text):
        return _root(words, device, f"{text} -")
    fields = text.split(",")
    if len(fields) > 3:
        raise Malformed(
            f"nbdroot={plain(text)}", "more than HOST,EXPORT,DEVICE", "write an export with a comma in a URI"
        )
    if len(fields) == 3:
        return _root(words, device or fields[2], _place(_server(fields[0], dhcp), fields[1]), made=not words.root)
    if len(fields) == 2:
        return _root(words, device, _place_by_port(_server(fields[0], dhcp), fields[1]))
    server, slash, export = _split_path(text)
    return _root(words, device, _place(_server(server, dhcp), f"/{export}" if slash == ":/" else export))


def _split_path(text: str) -> tuple[str, str, str]:
    """Splits HOST:/EXPORT, where the slash belongs to the name as in NFS, or HOST:PORT/EXPORT."""
    found = re.fullmatch(r"(\[[^]]*\][^/]*?|[^/]*?)(:?/)(.*)", text)
    return (found[1], found[2], found[3]) if found else (text, "", "")


def _told(dhcp: Mapping[str, str], name: str) -> str:
    text = dhcp.get(name, "")
    _refuse_more_than_a_word(f"{name} of DHCP", text)
    return text


def _refuse_more_than_a_word(name: str, text: str) -> None:
    """Raises `Malformed` if the text has a blank, # or control character: it becomes part of a line of nbdtab.

    There a blank ends the field, and # begins a comment. So an attacker's DHCP answer could replace or cut off the
    options of the operator, such as those of TLS.
    """
    if any(char == "#" or char.isspace() or not char.isprintable() for char in text):
        cause = "contains a blank, # or a control character"
        raise Malformed(f"{name}: {quoted(text)}", cause, "in a URI, write %20 for a blank and %23 for #")


def _server(host: str, dhcp: Mapping[str, str]) -> str:
    server = _told(dhcp, "ROOTSERVER") if host in ("", "dhcp") else host
    if not server:
        raise Malformed("nbdroot", "it names no server, and neither does DHCP", _FORMS)
    return server


def _place(server: str, export: str) -> str:
    """Fields of nbdtab: host and export."""
    return f"{server} {export}" if export else f"nbd://{server}/ -"


def _place_by_port(server: str, export: str) -> str:
    """As `_place`, but a number as `export` is a port, and PORT/EXPORT is both."""
    port, _, name = export.partition("/")
    return _place(f"{server}:{port}", name) if port.isascii() and port.isdigit() else _place(server, export)


def _root(words: _Words, device: str, place: str, made: bool = False) -> Root:
    """`made`: the device is the root, because no other option names the root."""
    found = _DEVICE.fullmatch(device or DEFAULT_DEVICE)
    if not found:
        raise Malformed(quoted(device), "not an nbd device", "write nbd0 or /dev/nbd0")
    options = [option for option in words.nbdopts.split(",") if option]
    if not any(option.startswith("retry-for=") for option in options):
        options.append(f"retry-for={RETRY_FOR}")
    table = nbdtab.parse(f"{found[1]} {place} {','.join(options)}", "kernel command line")
    if table.mistakes:
        error = table.mistakes[0].error
        raise Malformed(f"nbdroot or nbdopts: {plain(place)} {plain(words.nbdopts)}".rstrip(), error.cause, error.hint)
    entry = table.entries[0]
    if entry.image:
        raise Malformed(plain(entry.image), "an image of this machine cannot have its root", "name a server")
    return Root(entry.device, entry.target, _for_a_root(entry.options), f"/dev/{found[0].removeprefix('/dev/')}" * made)


def _for_a_root(options: ConnectOptions) -> ConnectOptions:
    """A root must get no I/O error, so requests wait. No process of ours outlives the initramfs, so netlink only."""
    if options.backend == "ioctl" or options.tls_transport == "relay":
        what = "backend ioctl" if options.backend == "ioctl" else "tls-transport relay"
        raise Malformed("nbdopts", f"{what} needs a process, but all processes of the initramfs end", "leave it out")
    on_loss = FOREVER if options.on_loss is None else options.on_loss
    return replace(options, backend="netlink", tls_transport="kernel", on_loss=on_loss, root=True)
