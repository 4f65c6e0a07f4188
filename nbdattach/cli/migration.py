# SPDX-License-Identifier: GPL-2.0-or-later
"""What other programs call our commands and options: data, for hints after an error and for a man page.

man/nbdattach-migrating.7 has the options of these tables, in their order; tests/unit/house/migrating.py writes them
there. `corrected` reads command lines by them. A test compares them with the options that the programs have.
"""

from __future__ import annotations

from nbdattach.immutable import immutable

# Of an option that belongs to a server, in the place of ours: its command is written in brackets.
IN_BRACKETS = "[]"
# The value of such an option names the server: it becomes part of TARGET.
OF_TARGET = "TARGET"


@immutable
class Other:
    """An option of another program.

    `names`: with blanks between them. `value`: what it takes, "" for a flag. `ours`: an option of ours ("--size SIZE"),
    a command ("status DEVICE"), `IN_BRACKETS`, `OF_TARGET`, or "" if it is left out. `why` it is left out; if it has
    `ours` too, only for images. `needed`: it must not be left out, so `why` says what to do. `note`: sentences for the
    man page; literals are in backquotes.
    """

    names: str
    value: str = ""
    ours: str = ""
    why: str = ""
    note: str = ""
    needed: bool = False

    @property
    def kind(self) -> str:
        """What becomes of it: "option", "command", "target", "in brackets", or "left out"."""
        if self.ours in (IN_BRACKETS, OF_TARGET, ""):
            return {IN_BRACKETS: "in brackets", OF_TARGET: "target", "": "left out"}[self.ours]
        return "option" if self.ours.startswith("--") and self.ours not in ("--help", "--version") else "command"


@immutable
class Program:
    """A program, or "" for words of several. `one_dash`: its long options may have one dash or two."""

    name: str
    options: tuple[Other, ...]
    one_dash: bool = False


# nbd-client.c of 3.24 and of the newest version, which has -i, -T and -y too; -netlink is of 3.16.
NBD_CLIENT = Program(
    "nbd-client",
    (
        Other(
            "-b -block-size",
            "N",
            "--block-size SIZE",
            note="Usually not needed, because the default is the server's minimum.",
        ),
        Other(
            "-C -connections",
            "N",
            "--connections N",
            note="By netlink, several connections need `--io-timeout`; without it, nbdattach makes only one. LIMITS in"
            " nbdattach(8) gives the reason. Without `-C`, netlink uses one connection; ioctl uses up to four if the"
            " server allows several.",
        ),
        Other("-N -name", "NAME", "--export NAME"),
        Other("-u -unix", "", "connect PATH", note="A TARGET that begins with a slash is a Unix socket."),
        Other("-R -readonly", "", "--read-only"),
        Other("-s -swap", "", "--swap"),
        Other("-n -nofork", "", "--foreground"),
        Other("-B -size", "BYTES", "--size SIZE", note="It needs `--no-handshake`."),
        Other("-P -preinit", "", "--no-handshake", note="It needs `--size`."),
        Other(
            "-p -persist",
            "",
            "",
            "it is the default",
            "This needs the netlink backend. `--on-loss wait` lets requests wait for ever.",
        ),
        Other("-T -dead-timeout", "SECONDS", "--on-loss wait:TIME"),
        Other(
            "-t -timeout",
            "SECONDS",
            "--io-timeout TIME",
            note="Usually not needed, because `--dead-peer` detects a dead server.",
        ),
        Other("-L -nonetlink", "", "--backend ioctl"),
        Other("-netlink", "", "", "it is the default"),
        Other("-i -identifier", "NAME", "--tag NAME"),
        Other("-x -enable-tls", "", "--tls", note="Or `nbds://` instead of `nbd://`. nbdattach verifies the server."),
        Other("-F -certfile", "FILE", "--tls-cert FILE"),
        Other("-K -keyfile", "FILE", "--tls-key FILE"),
        Other(
            "-A -cacertfile",
            "FILE",
            "--tls-ca FILE",
            note="Without it, nbdattach trusts the authorities that the machine trusts.",
        ),
        Other("-H -tlshostname", "NAME", "--tls-hostname NAME"),
        Other("-y -priority", "STRING", "", "the machine's OpenSSL decides about ciphers"),
        Other("-g -no-optgo", "", "", "nbdattach notices if a server lacks NBD_OPT_GO"),
        Other("-m -systemd-mark", "", "", "nbdattach marks its own processes"),
        Other("-S -sdp", "", "", "nbdattach has no Socket Direct Protocol, only TCP"),
        Other(
            "-c -check",
            "DEVICE",
            "status DEVICE",
            note="The exit status is 0 if the device is attached, and 8 if it is not. The pid is in the output of"
            " `nbdattach status --json /dev/nbd0`.",
        ),
        Other("-d -disconnect", "DEVICE", "disconnect DEVICE"),
        Other("-l -list", "", "list TARGET"),
        Other("-h -help", "", "--help"),
        Other("-V -version", "", "--version"),
    ),
    one_dash=True,
)

_TALK = "nbdattach chooses how it talks to the server"
_ONE_DEVICE = "the server is for one device"
# qemu-nbd.c of 7.2 to 10.2; -P is of 4.2 and older.
QEMU_NBD = Program(
    "qemu-nbd",
    (
        Other("-c --connect", "DEVICE", "connect TARGET DEVICE"),
        Other("-d --disconnect", "", "disconnect DEVICE"),
        Other(
            "-f --format",
            "FORMAT",
            "--format FORMAT",
            note="Usually not needed, because nbdattach takes the format from the name and the header of the image. If"
            " these disagree, it asks for `--format`.",
        ),
        Other("-s --snapshot", "", "--snapshot"),
        Other("-l --load-snapshot", "NAME", IN_BRACKETS),
        Other(
            "-r --read-only",
            "",
            "--read-only",
            note="An image that cannot be written is attached read-only even without it.",
        ),
        Other("-n --nocache", "", "--cache none"),
        Other(
            "--cache",
            "MODE",
            "--cache MODE",
            note="The default is not always writeback; see Server and cache in nbdattach-images(7).",
        ),
        Other("--discard", "MODE", "--discard MODE", note="The default is unmap; the one of qemu-nbd is ignore."),
        Other(
            "-o --offset",
            "BYTES",
            "--offset SIZE",
            note="It is for a raw image. With `--size SIZE` it is a part of the image.",
        ),
        Other(
            "-P --partition",
            "N",
            "",
            "connect makes a device of each partition",
            "Attach the whole image, and use `/dev/nbd0p1`. Current versions of qemu-nbd do not have this option.",
        ),
        Other("-L --list", "", "list TARGET"),
        Other("-b --bind", "ADDRESS", OF_TARGET, _TALK),
        Other("-p --port", "PORT", OF_TARGET, _TALK),
        Other("-k --socket", "PATH", OF_TARGET, _TALK),
        Other("-x --export-name", "NAME", "--export NAME", _TALK),
        Other("-t --persistent", "", "", "the server runs until disconnect"),
        Other("-e --shared", "NUM", "", _ONE_DEVICE),
        Other("-m --multi-conn", "MODE", "", _ONE_DEVICE),
        Other("-D --description", "TEXT", "", _ONE_DEVICE),
        Other("--fork", "", "", "connect returns when the device is ready"),
        Other("--pid-file", "PATH", "", "nbdattach status --json shows the pid of the server"),
        Other("--handshake-limit", "SECONDS", "", _ONE_DEVICE),
        Other("--aio", "MODE", IN_BRACKETS),
        Other("--detect-zeroes", "MODE", IN_BRACKETS),
        Other("--image-opts", "", IN_BRACKETS),
        Other(
            "--object",
            "OBJECT",
            IN_BRACKETS,
            note="For a LUKS image, cryptsetup(8) is another way.",
        ),
        Other("--selinux-label", "LABEL", IN_BRACKETS),
        Other("-T --trace", "PATTERN", IN_BRACKETS),
        Other("-A --allocation-depth", "", "", "the kernel's nbd driver cannot use it"),
        Other("-B --bitmap", "NAME", "", "the kernel's nbd driver cannot use it"),
        Other(
            "--tls-creds",
            "ID",
            "",
            "nbdattach reads certificates from files: --tls-ca FILE, --tls-cert FILE, --tls-key FILE",
            needed=True,
        ),
        Other("--tls-hostname", "NAME", "--tls-hostname NAME"),
        Other("--tls-authz", "ID", "", _ONE_DEVICE),
        Other("-v --verbose", "", "--debug"),
        Other("-h --help", "", "--help"),
        Other("-V --version", "", "--version"),
    ),
)

# losetup.c of util-linux 2.38 to 2.41.
LOSETUP = Program(
    "losetup",
    (
        Other("-a --all", "", "status"),
        Other("-l --list", "", "status"),
        Other("-j --associated", "FILE", "status", note="It shows the image of each device."),
        Other("-d --detach", "", "disconnect DEVICE"),
        Other("-D --detach-all", "", "disconnect --all"),
        Other("-f --find", "", "", "without DEVICE, connect uses a free one"),
        Other("--show", "", "", "connect prints the device"),
        Other("-c --set-capacity", "", "resize DEVICE"),
        Other("-o --offset", "N", "--offset SIZE"),
        Other("--sizelimit", "N", "--size SIZE"),
        Other("-b --sector-size", "N", "--block-size SIZE"),
        Other("-r --read-only", "", "--read-only"),
        Other("-P --partscan", "", "", "connect makes a device of each partition"),
        Other("-L --nooverlap", "", "", "an image is attached for writing only once"),
        Other("--direct-io", "", "--cache none"),
        Other("--loop-ref", "NAME", "--tag NAME"),
        Other("-J --json", "", "--json"),
        Other("-n --noheadings", "", "--noheadings"),
        Other(
            "-O --output",
            "COLUMNS",
            "",
            "status has columns of its own: nbdattach status --output all shows them",
            needed=True,
        ),
        Other("--output-all", "", "--output all"),
        Other("--raw", "", "", "status cuts nothing in a pipe"),
        Other("-v --verbose", "", "--debug"),
        Other("-h --help", "", "--help"),
        Other("-V --version", "", "--version"),
    ),
)

# Of no program in particular.
HABITS = Program(
    "",
    (
        Other("--name -n", "NAME", "--export NAME"),
        Other("--ro --readonly", "", "--read-only"),
        Other("-a", "", "--all"),
        Other("--rw --readwrite --writable", "", "--read-write"),
        Other("--bs --blocksize --sector-size", "SIZE", "--block-size SIZE"),
        Other("--conns", "N", "--connections N"),
        Other("--retry --wait", "TIME", "--retry-for TIME"),
        Other("--timeout", "TIME", "--connect-timeout TIME"),
        Other("--host", "ADDRESS", OF_TARGET),
        Other("--port -p", "PORT", OF_TARGET),
        Other("--socket --path", "PATH", OF_TARGET),
        Other("--device --dev", "DEVICE", "connect TARGET DEVICE"),
        Other("--ca --cacert", "FILE", "--tls-ca FILE"),
        Other("--cert", "FILE", "--tls-cert FILE"),
        Other("--key", "FILE", "--tls-key FILE"),
        Other("--psk", "FILE", "--tls-psk FILE"),
        Other("--insecure --no-verify --tls-insecure", "", "--tls-no-verify"),
        Other("--tls-verify --verify", "", "", "the server is always verified"),
        Other("--verbose -v", "", "--debug"),
        Other("--quiet -q", "", "", "no command prints more than its result"),
        Other("-V", "", "--version"),
    ),
)
PROGRAMS = (NBD_CLIENT, QEMU_NBD, LOSETUP)

# Commands by the names that other programs have. None of these is a name of ours.
COMMANDS = {
    "attach": "connect",
    "map": "connect",
    "add": "connect",
    "mount": "connect",
    "open": "connect",
    "create": "connect",
    "login": "connect",
    "start": "up",
    "detach": "disconnect",
    "unmap": "disconnect",
    "remove": "disconnect",
    "rm": "disconnect",
    "umount": "disconnect",
    "unmount": "disconnect",
    "close": "disconnect",
    "stop": "disconnect",
    "delete": "disconnect",
    "del": "disconnect",
    "eject": "disconnect",
    "logout": "disconnect",
    "restart": "reconnect",
    "grow": "resize",
    "extend": "resize",
    "show": "status",
    "ls": "status",
    "ps": "status",
    "exports": "list",
    "discover": "list",
    "ping": "check",
    "version": "--version",
}
# The same, if the command has an argument: ls is nbdattach status, ls db1 is nbdattach list db1.
WITH_ARGUMENT = {"ls": "list", "start": "connect"}
