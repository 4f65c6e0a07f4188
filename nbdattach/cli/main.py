# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: parses, calls, prints. All that does the work is imported where it is used: --help is fast."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from nbdattach import __version__, option_values
from nbdattach.cli import usage
from nbdattach.errors import DeviceInUse, KernelRefused, Malformed, NbdattachError, NotAttached
from nbdattach.text import plain

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from nbdattach.api import Attachment
    from nbdattach.attached.status import Status
    from nbdattach.cli.completion import Offer
    from nbdattach.device import Device
    from nbdattach.protocol.target import Target

_F = TypeVar("_F", bound=Callable[..., Any])
_D = TypeVar("_D")
_UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EBADF)  # of standard output: a reader that left, a full disk


class Value(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.4
    """What one of the functions of `option_values` makes of the text. `words` are what a shell can offer."""

    def __init__(self, name: str, parse: Callable[[str], Any], words: Sequence[str] = ()) -> None:
        self.name = name
        self._parse = parse
        self._words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value  # a default
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, _ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(word) for word in self._words if word.startswith(incomplete)]


def _seconds(least: float = 0.0) -> Value:
    return Value("SEC", functools.partial(option_values.seconds, least=least))


def _number(least: int) -> Value:
    return Value("N", functools.partial(option_values.number, least=least))


def _one_of(words: Sequence[str]) -> Value:
    return Value("WORD", functools.partial(option_values.one_of, words=words), words)


# -- what a shell can offer, where the user presses Tab -----------------------------------------------------------


def _free_devices(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    from nbdattach.cli import completion

    return _items(completion.free_devices(typed))


def _attached_devices(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    from nbdattach.cli import completion

    return _items(completion.attached_devices(typed))


def _table_devices(ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    from nbdattach.cli import completion

    return _items(completion.table_devices(typed, ctx.params.get("path") or _TABLE))


def _targets(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    from nbdattach.cli import completion

    return _files(ctx, param, typed) if typed.startswith("/") else _items(completion.targets(typed))


def _attachments(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    from nbdattach.cli import completion

    return _items(completion.attached_devices(typed) or completion.targets(typed))


def _tags(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    from nbdattach.cli import completion

    return _items(completion.tags(typed))


def _exports(ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Those of the server that the command line names; click leaves arguments before an open option in `args`."""
    from nbdattach.cli import completion

    def place() -> Target:
        given = {name: ctx.params.get(name) for name in ("tls_ca", "tls_cert", "tls_key", "tls_hostname")}
        trust = {name.removeprefix("tls_"): value for name, value in given.items()}
        target = ctx.params.get("target") or ctx.args[0]
        return _target(target, None, {**trust, "required": bool(ctx.params.get("tls"))})

    return _items(completion.exports(typed, place))


def _files(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(typed, type="file")]


def _items(offers: Sequence[Offer]) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(offer.word, help=offer.help) for offer in offers]


# -- what the commands share -------------------------------------------------------------------------------------


def _debug_option(function: _F) -> _F:
    return click.option("--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show each step.")(
        function
    )


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().obj = True


def _is_debug() -> bool:
    ctx = click.get_current_context(silent=True)
    return bool(ctx and ctx.find_root().obj)


_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_TABLE = "/etc/nbdtab"
_export_option = click.option(
    "-N", "--export", metavar="NAME", shell_complete=_exports, help="Export, where TARGET is no URI.  [default: '']"
)
_timeout_option = click.option(
    "--connect-timeout",
    type=_seconds(option_values.LEAST_CONNECT_TIMEOUT),
    default=30.0,
    show_default=True,
    help="Deadline of each whole connect-and-handshake.",
)


def _file_option(name: str, text: str) -> Callable[[_F], _F]:
    return click.option(name, metavar="FILE", shell_complete=_files, help=text)


def _tls_options(function: _F) -> _F:
    """What says that TLS is required, and whom to trust."""
    for option in reversed(
        (
            click.option("--tls", is_flag=True, help="Require TLS, as nbds:// does."),
            _file_option("--tls-ca", "Whom to trust: PEM file, or a directory with certificates."),
            _file_option("--tls-cert", "Our certificate for the server."),
            _file_option("--tls-key", "Its key.  [default: in the same file]"),
            click.option("--tls-hostname", metavar="NAME", help="The server's name.  [default: TARGET's host]"),
            _file_option("--tls-psk", "A pre-shared key, as psktool writes it."),
            click.option("--tls-no-verify", is_flag=True, help="Accept any certificate."),
        )
    ):
        function = option(function)
    return function


def _trust(options: dict[str, Any]) -> dict[str, Any]:
    """Takes what `_tls_options` gave out of the options, as arguments for `target.with_tls`."""
    names = {
        "required": "tls", "ca": "tls_ca", "cert": "tls_cert", "key": "tls_key", "hostname": "tls_hostname",
        "psk": "tls_psk",
    }  # fmt: skip
    found = {name: options.pop(option) for name, option in names.items()}
    found["verify"] = not options.pop("tls_no_verify")
    if not found["verify"]:
        _warn_of_no_verify()
    return found


def _warn_of_no_verify(where: str = "") -> None:
    cause = "the server is not verified (--tls-no-verify): whoever is in between reads and changes all data"
    _say(f"{where}warning: {cause}")


def _trace() -> Callable[[str], None]:
    if not _is_debug():
        return lambda _: None
    return lambda line: _say(f"debug: {line}")


def _say(line: str) -> None:
    click.echo(f"nbdattach: {line}", err=True)


def _say_error(error: NbdattachError) -> None:
    _say(str(error))
    for line in error.users if isinstance(error, DeviceInUse) else ():
        click.echo(f"  {line}", err=True)
    click.echo(f"({error.hint})", err=True)


def _target(text: str, export: str | None, trust: dict[str, Any] | None = None) -> Target:
    from nbdattach.protocol.target import parse_target, with_tls

    return with_tls(parse_target(text, export), **trust or {})


def _device(text: str) -> Device:
    from nbdattach.device import parse_device

    return parse_device(text)


# -- commands ----------------------------------------------------------------------------------------------------


@click.group(cls=usage.Group)
@click.version_option(__version__, message="nbdattach %(version)s")
@_debug_option
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Attach exports of NBD servers to /dev/nbdX, and detach them safely.

    TARGET is HOST, HOST:PORT, [V6ADDR]:PORT, the path of a Unix socket, or an NBD URI such as nbd://db1/disk.
    DEVICE is /dev/nbd0 or nbd0.
    """
    usage.require_command(ctx)


@cli.command()
@click.argument("target", shell_complete=_targets)
@click.argument("device", required=False, shell_complete=_free_devices)
@_export_option
@click.option("-r", "--read-only", is_flag=True, help="Attach read-only.")
@click.option(
    "-b",
    "--block-size",
    type=Value("N", option_values.block_size, [*map(str, option_values.BLOCK_SIZES)]),
    metavar="N",
    help="Logical block size in bytes.",
)
@click.option(
    "-C",
    "--connections",
    type=Value("N|auto", option_values.connections, ["auto"]),
    metavar="N|auto",
    default="auto",
    show_default=True,
    help="Connections.",
)
@_timeout_option
@click.option(
    "--retry-for", type=_seconds(), default=0.0, show_default=True, help="Keep trying to connect for so long."
)
@click.option(
    "--backend",
    type=_one_of(option_values.BACKENDS),
    metavar=f"[{'|'.join(option_values.BACKENDS)}]",
    default="auto",
    show_default=True,
    help="How the kernel is given the connection.",
)
@click.option(
    "--on-loss",
    type=Value("wait[:SEC]|fail", option_values.on_loss, ["wait", "wait:300", "fail"]),
    metavar="wait[:SEC]|fail",
    help="What requests do while the server is away.  [default: wait:300]",
)
@click.option(
    "--dead-peer",
    type=_seconds(option_values.LEAST_DEAD_PEER),
    default=30.0,
    show_default=True,
    help="How soon a silent peer counts as gone.",
)
@click.option(
    "--io-timeout", type=_seconds(), default=0.0, show_default=True, help="Give up on a slow request after so long."
)
@_tls_options
@click.option(
    "--tls-transport",
    type=_one_of(option_values.TRANSPORTS),
    metavar=f"[{'|'.join(option_values.TRANSPORTS)}]",
    default="auto",
    show_default=True,
    help="Who encrypts once attached.",
)
@click.option("--tag", metavar="NAME", help="Identity of the attachment.  [default: the target's URI]")
@click.option("--expect-size", type=_number(0), metavar="BYTES", help="Refuse an export of another size.")
@click.option("--size", "raw_size", type=_number(1), metavar="BYTES", help="Size, with --no-handshake.")
@click.option("--no-handshake", is_flag=True, help="The server sends no greeting; needs --size.")
@click.option("--swap", is_flag=True, help="Make it safe to swap on the device.")
@click.option("-f", "--foreground", is_flag=True, help="Stay; detach safely on SIGTERM.")
@click.option("--no-reconnect", is_flag=True, help="Do not ask the monitor to look after it.")
@_json_option
@_debug_option
def connect(
    target: str,
    device: str | None,
    export: str | None,
    foreground: bool,
    as_json: bool,
    no_handshake: bool,
    raw_size: int | None,
    no_reconnect: bool,
    **wishes: Any,
) -> None:
    """Attach an export; print the device.

    Without DEVICE a free one is taken. When the command returns, the device is ready: size and block size are set,
    and its partitions are there.
    """
    trust = _trust(wishes)
    _target(target, export, trust)
    if wishes["tag"] == "":
        raise Malformed("--tag", "an empty name", "leave it out for the target's URI")
    wishes["tag"] = wishes["tag"] or ""
    if no_handshake != (raw_size is not None):
        raise Malformed(
            "--no-handshake" if no_handshake else "--size",
            "goes only with " + ("--size BYTES" if no_handshake else "--no-handshake"),
            "give both, or none",
        )
    from nbdattach import api
    from nbdattach.cli import render

    done = api.connect(
        target,
        device,
        export=export,
        size=raw_size,
        reconnect=not no_reconnect,
        trace=_trace(),
        **{f"tls_{name}" if name != "required" else "tls": value for name, value in trust.items()},
        **wishes,
    )
    for note in done.notes:
        _say(note)
    try:
        click.echo(render.as_json(render.status_object(done.status())) if as_json else done.device)
        sys.stdout.flush()
    except (OSError, KeyboardInterrupt):  # a user who cannot be told of the attachment does not have it
        if done.fresh:
            done.disconnect()
        raise
    if foreground:
        from nbdattach.cli import foreground as front

        front.stay(done, _say_error, _trace())


@cli.command()
@click.argument("attachments", nargs=-1, metavar="[DEVICE|TARGET]...", shell_complete=_attachments)
@_export_option
@click.option("--tag", metavar="NAME", shell_complete=_tags, help="What has this tag, wherever it is.")
@click.option("--all", "everything", is_flag=True, help="All that nbdattach has attached.")
@click.option("--if-tag", metavar="NAME", shell_complete=_tags, help="Leave alone what has another tag.")
@click.option(
    "--timeout", type=_seconds(), default=60.0, show_default=True, help="How long to wait for the kernel to let go."
)
@click.option("--force", is_flag=True, help="Detach under its users, and lose what cannot be flushed.")
@_debug_option
def disconnect(
    attachments: tuple[str, ...],
    export: str | None,
    tag: str | None,
    everything: bool,
    if_tag: str | None,
    timeout: float,
    force: bool,
) -> None:
    """Detach devices, once it is safe.

    A device in use (mounted, swapped on, held by another device, open in a process) is left alone, and its users are
    named. What was written is flushed to the server first.
    """
    if bool(attachments) + (tag is not None) + everything != 1:
        raise click.UsageError("Give devices or targets, or --tag, or --all.", click.get_current_context())
    if tag == "" or if_tag == "":
        raise Malformed("--tag" if tag == "" else "--if-tag", "an empty name", "nbdattach status --json shows the tags")
    from nbdattach import api

    wanted = _devices_of(attachments, export, tag, everything)

    def one(meant: str | Attachment) -> None:
        device = meant if isinstance(meant, str) else meant.device
        detach = functools.partial(api.disconnect, meant) if isinstance(meant, str) else meant.disconnect
        try:
            done = detach(timeout, force=force, if_tag=if_tag, say=_say, progress=_progress(device), trace=_trace())
        finally:
            _say_over("")
        if done:
            _say(f"{device}: {done}, nothing to do")

    _each(wanted, one)


def _devices_of(
    attachments: tuple[str, ...], export: str | None, tag: str | None, everything: bool
) -> list[str | Attachment]:
    """Paths of devices that were named, and attachments that were found by what they are: only those are meant then.

    Says what is not attached, which is no error. Raises `Malformed` for what can be neither.
    """
    from nbdattach import api

    if everything:
        return [*_all_of_ours()]
    if tag is not None:
        return [*_those(f"tag {plain(tag)}", api.find(tag=tag))]
    found: dict[str, str | Attachment] = {}
    for text in attachments:
        try:
            device = _device(text).path
            found[device] = device
        except Malformed as no_device:
            for one in _those(plain(text), _attached_to(text, export, no_device)):
                found.setdefault(one.device, one)
    return list(found.values())


def _all_of_ours() -> Iterator[Attachment]:
    from nbdattach import api
    from nbdattach.attached import state

    state.refuse_hidden()
    for one in api.attachments():
        if one.target is None:
            _say(f"{one.device}: left alone, another tool attached it; name it to detach it")
        else:
            with contextlib.suppress(NotAttached):
                yield api.Attachment.at(one.device)


def _attached_to(text: str, export: str | None, no_device: Malformed) -> list[Attachment]:
    """Where the target is attached. A word that is none, and that looks more like a mistyped device, is refused."""
    from nbdattach import api

    if text.startswith("/dev/"):
        raise no_device
    found = api.find(target=text, export=export)
    if not found and "/" not in text and ":" not in text:
        raise no_device
    if len(found) > 1:
        cause = f"attached at {' and '.join(one.device for one in found)}"
        raise Malformed(plain(text), cause, "name the device, or its --tag")
    return found


def _those(name: str, found: list[Attachment]) -> list[Attachment]:
    if not found:
        _say(f"{name}: not attached, nothing to do")
    return found


def _progress(device: str) -> Callable[[float], None]:
    """Tells on a terminal, in one line that is written over, that a flush takes its time."""

    def tell(seconds: float) -> None:
        if seconds >= 1:
            _say_over(f"nbdattach: {device}: flushing to the server, {seconds:.0f} s")

    return tell if sys.stderr.isatty() else lambda _: None


def _say_over(line: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{line}\x1b[K", err=True, nl=False)


@cli.command()
@click.argument("devices", nargs=-1, metavar="[DEVICE...]", shell_complete=_attached_devices)
@click.option("--watch", is_flag=True, help="Show it live, with what is read and written, until q is typed.")
@_json_option
@_debug_option
def status(devices: tuple[str, ...], watch: bool, as_json: bool) -> None:
    """Show what is attached where, by nbdattach or by others."""
    wanted = [_device(text) for text in devices]
    if watch and as_json:
        raise Malformed("--watch", "does not go with --json", "leave out one; a program can ask status --json again")
    from nbdattach import api
    from nbdattach.cli import render
    from nbdattach.kernel import driver

    driver.refuse_other_systems()
    if watch:
        from nbdattach.cli import screen

        screen.watch(wanted)
        return
    found: list[Status] = []

    def show() -> None:
        if as_json:
            click.echo(render.status_json(found))
        elif found:
            click.echo(render.status_table(found))

    if not wanted:
        found += api.attachments()
        show()
        return
    try:
        _each(wanted, lambda device: found.append(api.Attachment.at(device.path).status()))
    finally:
        show()


@cli.command()
@click.argument("device", shell_complete=_attached_devices)
@click.argument("target", required=False, shell_complete=_targets)
@_export_option
@_tls_options
@_debug_option
def reconnect(device: str, target: str | None, export: str | None, **tls: Any) -> None:
    """Hand a device over to a new connection, or to another server of the same data, without an I/O error.

    Without TARGET the new connection goes to where the old one went.
    """
    where = _device(device)
    if target is None and export is not None:
        raise Malformed("--export", "goes only with a TARGET", "leave it out for the same export")
    trust = _trust(tls)
    if target is None and _target("localhost", None, trust).tls:
        raise Malformed("--tls", "its options go only with a TARGET", "leave them out for those of connect")
    place = None if target is None else _target(target, export, trust)
    from nbdattach.operations import handover

    _say(f"{where.path}: connected to {handover.reconnect(where, place)}")


@cli.command()
@click.argument("device", shell_complete=_attached_devices)
@_debug_option
def resize(device: str) -> None:
    """Ask the server for the size of the export again, and give it to the device."""
    where = _device(device)
    from nbdattach import api

    _say(f"{where.path}: {api.Attachment.at(where.path).resize()}")


@cli.command()
@click.option("-b", "--background", is_flag=True, help="Return when it is ready; its log goes to the kernel's.")
@_debug_option
def monitor(background: bool) -> None:
    """Reconnect devices whose server went away. One runs for all devices of a host; connect starts it when needed."""
    from nbdattach.backends import choice
    from nbdattach.monitor import launch

    missing = choice.why_no_netlink()
    if missing:
        raise missing
    if background:
        launch.in_background()
        return
    from nbdattach.host import log
    from nbdattach.monitor import service

    service.run(log.to_stderr)


@cli.command("list")
@click.argument("target", shell_complete=_targets)
@_timeout_option
@_tls_options
@_json_option
@_debug_option
def list_(target: str, connect_timeout: float, as_json: bool, **tls: Any) -> None:
    """List the exports that a server offers."""
    place = _target(target, None, _trust(tls))
    from nbdattach.cli import render
    from nbdattach.connection import client

    exports = client.list_exports(place, connect_timeout, _trace())
    click.echo(render.list_json(place, exports) if as_json else render.list_table(exports))


@cli.command()
@click.argument("target", shell_complete=_targets)
@_export_option
@_timeout_option
@_tls_options
@_json_option
@_debug_option
def info(target: str, export: str | None, connect_timeout: float, as_json: bool, **tls: Any) -> None:
    """Show one export: size, flags, block sizes."""
    place = _target(target, export, _trust(tls))
    from nbdattach.cli import render
    from nbdattach.connection import client

    found = client.inspect(place, connect_timeout, _trace())
    click.echo(render.info_json(place, found) if as_json else render.info_lines(place, found))


@cli.command()
@click.argument("target", shell_complete=_targets)
@_export_option
@_timeout_option
@_tls_options
@_json_option
@_debug_option
def check(target: str, export: str | None, connect_timeout: float, as_json: bool, **tls: Any) -> None:
    """Check that an export can be read: handshake, then a real read, without the kernel."""
    place = _target(target, export, _trust(tls))
    from nbdattach.cli import render
    from nbdattach.connection import client

    found = client.check(place, connect_timeout, _trace())
    if as_json:
        click.echo(render.check_json(place, found))
    if found.error:
        raise found.error
    if not as_json:
        click.echo(render.check_line(place, found))


@cli.command()
@_json_option
@_debug_option
def doctor(as_json: bool) -> None:
    """Say what stands in the way on this machine, and the remedy."""
    from nbdattach import doctor
    from nbdattach.cli import render

    found = doctor.examine()
    click.echo(render.findings_json(found) if as_json else render.findings_lines(found))
    if any(one.stands_in_the_way for one in found):
        click.get_current_context().exit(KernelRefused.exit_code)


# -- the table for boot ------------------------------------------------------------------------------------------

_table_option = click.option(
    "--table",
    "path",
    metavar="FILE",
    default=_TABLE,
    show_default=True,
    shell_complete=_files,
    help="What is attached where.",
)


@cli.command()
@click.argument("devices", nargs=-1, metavar="[DEVICE...]", shell_complete=_table_devices)
@click.option("--all", "everything", is_flag=True, help="Every line, all at the same time.")
@click.option("--check", "only_check", is_flag=True, help="Only look for mistakes, in the whole file.")
@click.option(
    "--retry-for",
    type=_seconds(),
    default=0.0,
    show_default=True,
    help="For lines that have no retry-for of their own.",
)
@_table_option
@_debug_option
def up(devices: tuple[str, ...], everything: bool, only_check: bool, retry_for: float, path: str) -> None:
    """Attach what /etc/nbdtab names; print the devices.

    Attached already is done. Devices that do not come are reported; the others are attached all the same.
    """
    if bool(devices) + everything + only_check == 0 or (devices and everything):
        raise click.UsageError("Give devices, or --all, or --check.", click.get_current_context())
    wanted = None if everything else list(dict.fromkeys(_device(text) for text in devices))
    from nbdattach.boot import table

    found = table.read(path)
    entries, failures = table.chosen(found, wanted, path)
    if only_check:
        failures = list(dict.fromkeys([*(mistake.error for mistake in found.mistakes), *failures]))
        for failure in failures:  # in the order of the lines
            _say_error(failure)
        click.get_current_context().exit(failures[0].exit_code if failures else 0)
    for entry in entries:
        if not entry.target.tls_verify:
            _warn_of_no_verify(f"{entry.device.path}: ")
    for failure in failures:
        _say_error(failure)
    failed: dict[Device, NbdattachError] = {}
    with _killed_by_interrupt():
        for entry, outcome in table.up(table.patient(entries, retry_for), _trace()):
            if isinstance(outcome, NbdattachError):
                failed[entry.device] = outcome
                _say_error(outcome)
                continue
            for note in outcome.notes:
                _say(note)
            click.echo(outcome.device)
            sys.stdout.flush()
    failures += [failed[entry.device] for entry in entries if entry.device in failed]
    if failures:
        click.get_current_context().exit(failures[0].exit_code)


@contextlib.contextmanager
def _killed_by_interrupt() -> Iterator[None]:
    """For work in threads, which no KeyboardInterrupt reaches: to be killed leaves nothing half done."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@cli.command()
@click.argument("devices", nargs=-1, metavar="[DEVICE...]", shell_complete=_table_devices)
@click.option("--all", "everything", is_flag=True, help="Every line, from the last one to the first.")
@click.option("--unit", metavar="NAME", help="This is ExecStop= of that systemd unit.")
@_table_option
@_debug_option
def down(devices: tuple[str, ...], everything: bool, unit: str | None, path: str) -> None:
    """Detach what /etc/nbdtab names, once it is safe.

    Not attached is done. What is neither from the table nor what it says is left alone.
    """
    if bool(devices) + everything != 1:
        raise click.UsageError("Give devices, or --all.", click.get_current_context())
    wanted = list(dict.fromkeys(_device(text) for text in devices))
    from nbdattach.boot import table
    from nbdattach.boot import unit as units

    failures: list[NbdattachError] = []
    if everything:
        wanted, failures = table.all_to_detach(path)

    def one(device: Device) -> None:
        try:
            detach = functools.partial(units.down, unit=unit) if unit else table.down
            done = detach(device, path=path, say=_say, progress=_progress(device.path), trace=_trace())
        finally:
            _say_over("")
        if done:
            _say(f"{device.path}: {done}, nothing to do")

    _each(wanted, one, failures)


def _each(devices: Sequence[_D], do: Callable[[_D], None], failures: Sequence[NbdattachError] = ()) -> None:
    """All of them, whatever becomes of one; the first failure decides the exit code."""
    failures = [*failures]
    for device in devices:
        try:
            do(device)
        except NbdattachError as error:
            failures.append(error)
    _raise_all(failures)


def _raise_all(failures: Sequence[NbdattachError]) -> None:
    """The first of them decides the exit code."""
    for failure in failures[1:]:
        _say_error(failure)
    if failures:
        raise failures[0]


# -- the way out -------------------------------------------------------------------------------------------------


def main() -> NoReturn:
    """The console script: one line and one hint for each error, the documented exit code, no traceback."""
    # A socket or pipe of ours must never get the number of a standard file that the caller has closed.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, "r" if name == "stdin" else "w"))  # noqa: SIM115 - for good
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of the command."""
    debug = "--debug" in arguments
    if os.environ.get("_NBDATTACH_COMPLETE", "").endswith("_complete"):
        from nbdattach.cli import shell

        shell.speak_ours()
    try:
        code = cli.main(arguments, prog_name="nbdattach", standalone_mode=False)
        sys.stdout.flush()
    except NbdattachError as error:
        if debug:
            import traceback

            traceback.print_exc()
        _say_error(error)
        code = error.exit_code
    except click.UsageError as error:
        code = _say_usage(error)
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        code = 1
    except Exception as error:
        if debug:
            raise
        code = 1
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            _say(f"cannot write the result: {error.strerror}")
            hint = "run it again with an output that can be written; nbdattach status shows what is attached"
            click.echo(f"({hint})", err=True)
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - at exit Python would flush the old one once more
            return code
        _say(f"internal error: {type(error).__name__}: {error}")
        click.echo("(--debug shows where; please report it)", err=True)
    return code if isinstance(code, int) else 0


def _say_usage(error: click.UsageError) -> int:
    if isinstance(error, usage.NoCommand):
        click.echo(error.message, err=True)
    else:
        click.echo(f"{usage.path(error)}: {plain(error.message)}", err=True)
        click.echo(f"({usage.hint(error)})", err=True)
    return error.exit_code
