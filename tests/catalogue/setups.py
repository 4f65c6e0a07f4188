# SPDX-License-Identifier: GPL-2.0-or-later
"""The servers of the catalogue: how each one is started, and remarks that no probe can make.

Commands run in the root of a release, with /srv/disk (16 MiB of zeroes) there. Each server listens on 127.0.0.1, port 10809,
unless its setup says `unix`.
"""

from __future__ import annotations

from dataclasses import dataclass

ALL = ("bookworm", "trixie", "sid")
MIDDLE = ("trixie",)
UNIX = "/run/server.sock"
# For a device to go on when its server is back.
SECONDS_TO_RETURN = 15.0

_NBDKIT = "nbdkit --foreground --ipaddr 127.0.0.1"
_QEMU = "qemu-nbd --bind 127.0.0.1"
_STORAGE = "qemu-storage-daemon --nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port=10809"
_TLS_OBJECT = "--object tls-creds-x509,id=tls,endpoint=server,verify-peer=no,dir=/srv/tls"


@dataclass(frozen=True)
class Setup:
    """One server with its options.

    `name` is a file name. `command` ends only with the server, unless it leaves a daemon. `export` is the export's name.
    `prepare` is a shell script that runs first, once. `grow` makes the export 8 MiB larger. `disk` is the file; its
    blocks show if TRIM frees space. `tls` is the command for the same server with TLS, its certificates in /srv/tls.
    `does` says what the server does beyond the specification, `ours` what nbdattach makes of it.
    """

    name: str
    package: str
    command: str
    releases: tuple[str, ...] = MIDDLE
    prepare: str = ""
    export: str = ""
    unix: bool = False
    grow: str = ""
    disk: str = ""
    tls: str = ""
    connect: tuple[str, ...] = ()
    does: str = ""
    ours: str = ""


def _nbdkit(name: str, arguments: str, **more: object) -> Setup:
    return Setup(f"nbdkit-{name}", "nbdkit", f"{_NBDKIT} {arguments}", **more)  # type: ignore[arg-type]


def _qemu_nbd(name: str, arguments: str, **more: object) -> Setup:
    return Setup(f"qemu-nbd-{name}", "qemu-utils", f"{_QEMU} {arguments}", **more)  # type: ignore[arg-type]


def _nbd_server(name: str, lines: str, generic: str = "", **more: object) -> Setup:
    """`lines` are those of the export "disk", divided by semicolons."""
    text = "[generic]\nuser = root\ngroup = root\nlistenaddr = 127.0.0.1\nallowlist = true\n"
    text += "".join(f"{line}\n" for line in generic.split(";") if line)
    text += "[disk]\n" + "".join(f"{line.strip()}\n" for line in lines.split(";"))
    write = f"cat >/srv/config <<'END'\n{text}END\n"
    more["prepare"] = f"{more.get('prepare', '')}\n{write}"
    command = "nbd-server -C /srv/config -p /run/nbd-server.pid"
    return Setup(f"nbd-server-{name}", "nbd-server", command, export="disk", **more)  # type: ignore[arg-type]


def _storage(name: str, blockdev: str, node: str, export: str = "", **more: object) -> Setup:
    command = f"{_STORAGE} {blockdev} --export nbd,id=e,node-name={node},name=disk,writable=on{export}"
    return Setup(f"storage-daemon-{name}", "qemu-utils", command, export="disk", **more)  # type: ignore[arg-type]


_RANGE_SERVER = r"""
cat >/srv/ranges.py <<'END'
import http.server, os, re
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_HEAD(self): self.answer(False)
    def do_GET(self): self.answer(True)
    def answer(self, body):
        size = os.path.getsize("/srv/disk")
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2])) if asked else (0, size - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        if asked: self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if body:
            with open("/srv/disk", "rb") as disk:
                disk.seek(first)
                self.wfile.write(disk.read(last + 1 - first))
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
END
python3 /srv/ranges.py >/dev/null 2>&1 &
until ss -ltn | grep -q :8080; do sleep 0.2; done
"""
_SSH = """
mkdir -p /run/sshd /root/.ssh
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys
ssh-keygen -q -A
/usr/sbin/sshd -p 2222 -o ListenAddress=127.0.0.1 -o StrictModes=no
until ssh-keyscan -p 2222 127.0.0.1 >/root/.ssh/known_hosts 2>/dev/null && [ -s /root/.ssh/known_hosts ]; do sleep 0.2; done
"""
_SCRIPT = """
cat >/srv/plugin.py <<'END'
import nbdkit
API_VERSION = 2
disk = bytearray(16 << 20)
def open(readonly): return 1
def get_size(h): return len(disk)
def pread(h, buf, offset, flags): buf[:] = disk[offset:offset + len(buf)]
def pwrite(h, buf, offset, flags): disk[offset:offset + len(buf)] = buf
END
"""
_GROW = "truncate -s +8M /srv/disk"
_FILES = "mkdir -p /srv/files; seq 100000 >/srv/files/numbers; cp /bin/ls /srv/files"
_QCOW2 = "rm /srv/disk; qemu-img create -q -f qcow2 /srv/disk 16M"

SETUPS = [
    # nbdkit with a disk in memory or in a file
    _nbdkit("memory", "memory 16M", releases=ALL),
    _nbdkit(
        "file", "file /srv/disk", releases=ALL, grow=_GROW, disk="/srv/disk",
        tls=f"{_NBDKIT} --tls=require --tls-certificates=/srv/tls file /srv/disk",
    ),
    Setup("nbdkit-file-unix", "nbdkit", f"nbdkit --foreground --unix {UNIX} file /srv/disk", unix=True, disk="/srv/disk"),
    _nbdkit("file-dir", "file dir=/srv", export="disk"),
    _nbdkit("cow", "--filter=cow file /srv/disk"),
    _nbdkit("cache", "--filter=cache file /srv/disk"),
    _nbdkit("ondemand", "ondemand dir=/srv/dir size=16M", prepare="mkdir /srv/dir", export="disk", does="makes a disk of each name that a client asks for, even of a mistyped one; one client a disk", ours="a second client gets the server's own words"),
    _nbdkit("tmpdisk", "tmpdisk 16M"),
    _nbdkit("sparse-random", "sparse-random 16M", does="accepts a write only if it is the data that is there", ours="the write or fsync of the program fails; the kernel makes EIO of each error of a server"),
    _nbdkit("split", "split /srv/disk /srv/more", prepare="truncate -s 16M /srv/more", does="writes to all files but the first go to a wrong place, see `findings/nbdkit-split-writes-beyond-its-files.sh`", ours="nothing shows it at once; the monitor refuses the server after a restart, as the disk has grown"),
    _nbdkit("partitioning", "partitioning /srv/disk"),
    _nbdkit("partition-filter", "--filter=partition file /srv/disk partition=1",
            prepare="printf 'label: gpt\\nsize=8MiB\\n' | sfdisk -q /srv/disk"),
    _nbdkit("offset-filter", "--filter=offset file /srv/disk offset=1M range=8M"),
    # nbdkit that makes a disk of files
    _nbdkit("floppy", "floppy /srv/files", prepare=_FILES),
    _nbdkit("iso", "iso /srv/files", prepare=_FILES),
    _nbdkit("linuxdisk", "linuxdisk /srv/files", prepare=_FILES, does="makes new UUIDs at each start", ours="the monitor refuses it after a restart"),
    _nbdkit("gzip", "--filter=gzip file /srv/disk.gz", prepare="gzip -k /srv/disk"),
    _nbdkit("xz", "--filter=xz file /srv/disk.xz", prepare="xz -k --block-size=1MiB /srv/disk"),
    _nbdkit("tar", "--filter=tar file /srv/all.tar tar-entry=disk", prepare="tar -C /srv -cf /srv/all.tar disk"),
    _nbdkit("luks", "--filter=luks file /srv/luks passphrase=secret",
            prepare="qemu-img create -q --object secret,id=s,data=secret -f luks -o key-secret=s,iter-time=10 /srv/luks 16M"),
    # nbdkit with a disk elsewhere
    _nbdkit("curl", "curl http://127.0.0.1:8080/disk", prepare=_RANGE_SERVER, releases=ALL, does="offers writes, which this HTTP server does not take", ours="the write fails with EIO; --read-only"),
    _nbdkit("ssh", "ssh host=127.0.0.1 port=2222 /srv/disk", prepare=_SSH),
    _nbdkit("nbd", "nbd socket=/run/behind.sock",
            prepare="nbdkit --unix /run/behind.sock file /srv/disk"),
    _nbdkit("nbd-shared", "nbd socket=/run/behind.sock shared=true",
            prepare="nbdkit --unix /run/behind.sock file /srv/disk"),
    # nbdkit with patterns
    _nbdkit("data", "data '0x55 0xAA @16777215 0'"),
    _nbdkit("pattern", "pattern 16M"),
    _nbdkit("random", "random 16M"),
    _nbdkit("full", "full 16M", does="each write is ENOSPC, though the export is read-write", ours="the write or fsync of the program fails; the kernel makes EIO of each error of a server"),
    _nbdkit("null", "null 16M", does="throws all writes away, and says that they succeeded", ours="cannot tell it from a disk"),
    _nbdkit("zero", "zero"),
    # nbdkit with scripts
    _nbdkit("python", "python /srv/plugin.py", prepare=_SCRIPT),
    _nbdkit("eval", "eval get_size='echo 16M' pread='dd if=/srv/disk skip=$4 count=$3 iflag=count_bytes,skip_bytes status=none' "
            "pwrite='dd of=/srv/disk seek=$4 conv=notrunc oflag=seek_bytes status=none' can_write='exit 0'"),
    # nbdkit with unusual conversations
    _nbdkit("oldstyle", "--oldstyle file /srv/disk", releases=ALL, does="refuses the FLUSH, FUA, TRIM and WRITE_ZEROES that it offers, see `findings/nbdkit-oldstyle-refuses-what-it-offers.sh`", ours="fsync fails with EIO; `disconnect` refuses, as it cannot flush, until --force"),
    _nbdkit("newstyle-not-fixed", "--mask-handshake=0 file /srv/disk"),
    _nbdkit("no-structured-replies", "--no-sr file /srv/disk"),
    _nbdkit("exitlast", "--filter=exitlast file /srv/disk", does="ends with the last client", ours="each of `list`, `info` and `check` is a client that ends it"),
    _nbdkit("blocksize-policy", "--filter=blocksize-policy file /srv/disk blocksize-minimum=4096 "
            "blocksize-preferred=65536 blocksize-maximum=1M blocksize-error-policy=error", releases=ALL, does="refuses requests that do not fit", ours="the device has blocks of 4096 bytes, and no request above 1 MiB"),
    _nbdkit("ip-denied", "--filter=ip file /srv/disk allow=192.0.2.1 deny=all", does="closes the connection without a greeting", ours="exit 3"),
    _nbdkit("limit", "--filter=limit file /srv/disk limit=1", does="closes the connection of a client too many", ours="exit 3"),
    _nbdkit("noparallel", "--filter=noparallel file /srv/disk"),
    _nbdkit("multi-conn-off", "--filter=multi-conn file /srv/disk multi-conn-mode=disable"),
    _nbdkit("size-1000", "file /srv/odd", prepare="truncate -s 1000 /srv/odd", releases=ALL, does="an export may end within a sector", ours="attaches the whole sectors, and says so"),
    # qemu-nbd
    _qemu_nbd(
        "raw", "--persistent --shared=0 --format=raw --discard=unmap /srv/disk", releases=ALL, grow=_GROW, disk="/srv/disk",
        tls=f"{_QEMU} --persistent --shared=0 --format=raw {_TLS_OBJECT} --tls-creds=tls /srv/disk",
    ),
    _qemu_nbd("raw-defaults", "--format=raw /srv/disk", releases=ALL, disk="/srv/disk"),
    _qemu_nbd("raw-one-client", "--persistent --format=raw /srv/disk"),
    _qemu_nbd("raw-snapshot", "--persistent --shared=0 --snapshot --format=raw /srv/disk"),
    _qemu_nbd("raw-read-only", "--persistent --shared=0 --read-only --format=raw /srv/disk"),
    _qemu_nbd("qcow2", "--persistent --shared=0 --format=qcow2 --discard=unmap /srv/disk", prepare=_QCOW2,
              releases=ALL, disk="/srv/disk"),
    _qemu_nbd("vmdk", "--persistent --shared=0 --format=vmdk --discard=unmap /srv/disk", disk="/srv/disk",
              prepare="rm /srv/disk; qemu-img create -q -f vmdk /srv/disk 16M"),
    _qemu_nbd("vhdx", "--persistent --shared=0 --format=vhdx --discard=unmap /srv/disk", disk="/srv/disk",
              prepare="rm /srv/disk; qemu-img create -q -f vhdx /srv/disk 16M"),
    _qemu_nbd("vmdk-stream", "--persistent --shared=0 --format=vmdk /srv/stream",
              prepare="qemu-img convert -O vmdk -o subformat=streamOptimized /srv/disk /srv/stream", does="is offered read-write, and each write fails", ours="`connect` of the image itself refuses to write it; of a foreign server it cannot tell"),
    _qemu_nbd("luks", "--persistent --shared=0 --object secret,id=s,data=secret "
              "--image-opts driver=luks,key-secret=s,file.filename=/srv/luks",
              prepare="qemu-img create -q --object secret,id=s,data=secret -f luks -o key-secret=s,iter-time=10 /srv/luks 16M"),
    _qemu_nbd("vvfat", "--persistent --shared=0 --read-only --image-opts driver=vvfat,dir=/srv/files,label=FILES",
              prepare=_FILES),
    _qemu_nbd("named", "--persistent --shared=0 --format=raw --export-name=disk --description=numbers /srv/disk", export="disk"),
    _qemu_nbd("size-1000", "--persistent --shared=0 --format=raw /srv/odd", prepare="truncate -s 1000 /srv/odd", does="1000 bytes are served as 1024, and a write there makes the file grow", ours="-"),
    # qemu-storage-daemon, and the server in a virtual machine
    _storage("raw", "--blockdev file,node-name=f,filename=/srv/disk,discard=unmap", "f", releases=ALL, disk="/srv/disk",
             tls="qemu-storage-daemon " + _TLS_OBJECT + " --nbd-server "
             "addr.type=inet,addr.host=127.0.0.1,addr.port=10809,tls-creds=tls --blockdev file,node-name=f,filename=/srv/disk "
             "--export nbd,id=e,node-name=f,name=disk,writable=on"),
    _storage("qcow2", "--blockdev file,node-name=f,filename=/srv/disk --blockdev qcow2,node-name=q,file=f,discard=unmap", "q",
             prepare=_QCOW2, disk="/srv/disk"),
    Setup("qemu-system-hmp", "qemu-system-x86",
          "{ echo nbd_server_start -a -w 127.0.0.1:10809; sleep 100000; } | qemu-system-x86_64 -M none -nodefaults "
          "-display none -drive if=none,id=disk,format=raw,file=/srv/disk -monitor stdio", export="disk"),
    # nbd-server
    _nbd_server("file", "exportname = /srv/disk; flush = true; fua = true; trim = true", releases=ALL, grow=_GROW,
                disk="/srv/disk"),
    _nbd_server("defaults", "exportname = /srv/disk", releases=ALL),
    _nbd_server("tls", "exportname = /srv/disk; flush = true; fua = true; force_tls = true", releases=ALL,
                generic="certfile = /srv/tls/server-cert.pem;keyfile = /srv/tls/server-key.pem;cacertfile = /srv/tls/ca-cert.pem",
                tls="nbd-server -C /srv/config -p /run/nbd-server.pid",
                does="hides the export from clients without TLS; asks each client for a certificate, also without cacertfile",
                ours="an error that names --tls, and one that names --tls-cert"),
    _nbd_server("copyonwrite", "exportname = /srv/disk; copyonwrite = true", releases=ALL,
                does="3.26.1 gives back other data than was written, see `findings/nbd-server-copyonwrite-mixes-up-blocks.sh`; "
                "the disk of each connection is its own, and gone with it",
                ours="cannot tell; the monitor refuses the server after a loss of the connection, so requests wait"),
    _nbd_server("temporary", "exportname = /srv/disk; filesize = 16777216; temporary = true; flush = true", releases=ALL),
    _nbd_server("multifile", "exportname = /srv/part; multifile = true; flush = true",
                prepare="truncate -s 8M /srv/part.0 /srv/part.1"),
    _nbd_server("treefiles", "exportname = /srv/tree/; treefiles = true; filesize = 16777216; flush = true",
                prepare="mkdir /srv/tree"),
    _nbd_server("read-only", "exportname = /srv/disk; readonly = true"),
    _nbd_server("splice", "exportname = /srv/disk; splice = true; flush = true"),
    _nbd_server("sync", "exportname = /srv/disk; sync = true"),
    _nbd_server("maxconnections", "exportname = /srv/disk; maxconnections = 4; flush = true", releases=ALL),
]  # fmt: skip

# Servers that are not in the table, each with the reason.
LEFT_OUT = {
    "qemu-nbd vvfat with rw=on": "is for the writes of a FAT file system only; did not end within minutes after mkfs.ext4",
    "PyPXE 1.8.4 (PyPI)": "its NBD server is for Python 2, which Debian has had no packages of since Debian 12",
    "swiftnbd 0.11 (PyPI)": "is for Python 2, and needs OpenStack Swift",
    "nbdmux 0.9.2, pixie-lab 0.9.0 (PyPI)": "are no servers of their own: they start nbdkit with the filter cow (row nbdkit-cow)",
    "s3backer 1.5.4 (Debian)": "has FUSE only; NBD came with 2.0, which Debian does not have",
    "virtnbdbackup 1.9 to 2.53 (Debian)": "its virtnbdmap starts nbdkit with a plugin in Python (row nbdkit-python) on a "
    "backup of a libvirt machine",
    "@vates/nbd-client 3.6.0 (npm, of Xen Orchestra)": "is a client; the server is in XenServer's own Dom0 only",
    "xnbd-server": "was in Debian until Debian 10",
    "librust-nbd-dev (Debian)": "is a library without a program",
    "nbdkit S3, cdi, vddk, guestfs, libvirt, torrent": "need a service that is not on one machine without a network; "
    "`make far` tests nbdkit's S3 plugin",
}

# What servers do beyond the specification, whichever way they are started, and what nbdattach does about it. By the family
# that is the begin of a setup's name.
BEYOND: dict[str, list[str]] = {
    "nbdkit": [
        "After SIGTERM nbdkit stays for as long as a client is connected. It keeps its socket, so a new client can connect, "
        "and gets no greeting: `findings/nbdkit-stopped-listens-and-answers-nobody.sh`. nbdattach: the first request that nbdkit "
        "refuses (ESHUTDOWN) fails with EIO; then the monitor leaves, nbdkit ends, and later requests wait for the next server.",
        "An export that the server lists may fail to open, for example because its backend is away. nbdattach: the error "
        "says so; `--retry-for` and the monitor go on trying.",
        "The disk of memory, cow, tmpdisk, data and of many scripts is another one after a restart. nbdattach: the monitor "
        "refuses it, as it lacks the file systems that were there, and requests wait.",
        "In 1.32, each connection to the file plugin opens the file by its name: "
        "`findings/nbdkit-file-opens-its-name-again.sh`. nbdattach: the monitor compares the content.",
        "The retry filter repeats a FLUSH at the restarted server, which succeeds though the writes before it are lost: "
        "`findings/nbdkit-retry-makes-a-failed-flush-succeed.sh`. nbdattach: cannot tell.",
        "The cache filter with cache-max-size loses writes that it has acknowledged: "
        "`findings/nbdkit-cache-max-size-loses-writes.sh`. nbdattach: cannot tell.",
    ],
    "qemu-nbd": [
        "Without --persistent qemu-nbd ends with its first client. nbdattach: `list` and `info` enter no export, so that "
        "qemu-nbd stays; `check` and `connect` do.",
        "Without --shared it serves one client; the kernel connects a second one, which gets no greeting. nbdattach: the "
        "error says after the timeout that the server may be full. The monitor needs no second connection.",
        "Without --discard=unmap TRIM succeeds and frees nothing: `findings/qemu-nbd-offers-trim-and-ignores-it.sh`. "
        "nbdattach: cannot tell; servers that it starts itself get --discard=unmap.",
        "The size is that of the start. nbdattach: `resize` says that the server has the same size.",
        "A kill loses acknowledged writes to a qcow2 image that were not flushed: "
        "`findings/qemu-nbd-killed-loses-acknowledged-qcow2-writes.sh`. nbdattach: servers that it starts itself write "
        "through.",
    ],
    "nbd-server": [
        "NBD_OPT_INFO is answered with size 0. nbdattach: `info` then enters the export, and leaves it by NBD_CMD_DISC.",
        "maxconnections counts all clients since the start: "
        "`findings/nbd-server-maxconnections-counts-clients-that-have-left.sh`. nbdattach: the error has the "
        "server's words; `info` and `check` use up a client each.",
        "A temporary export offers multi-conn, and each connection has a disk of its own: "
        "`findings/nbd-server-temporary-multi-conn.sh`. nbdattach: by netlink it uses one connection unless the user asks for more.",
        "TRIM behind the middle of the export succeeds and frees nothing: `findings/nbd-server-trim-ignores-the-second-half.sh`. "
        "nbdattach: cannot tell; no data is lost.",
        "With sync or FUA, a write succeeds whose fsync failed: `findings/nbd-server-acknowledges-a-failed-sync.sh`. "
        "nbdattach: cannot tell.",
    ],
}
