#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# qemu-nbd 10.0.13 as a proxy, with the URI of another server in place of an image, offers FLUSH, FUA and TRIM, whether or
# not that server does. If it does not, as nbd-server with its defaults, each one succeeds, and the server cannot be asked:
# the client believes that its data is safe and its blocks are freed. nbdkit's nbd plugin offers what that server offers.
# 7.2 and 11.1.3 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie qemu-utils=1:10.0.13+ds-0+deb13u1 nbd-server=1:3.26.1-6.1 nbdkit=1.42.3-1 python3-libnbd=1.22.2-1+b1 iproute2
in_root >"$scratch/found" <<'END'
cd /tmp
truncate -s 1M disk
printf '[generic]\nuser = root\ngroup = root\nlistenaddr = 127.0.0.1\n[disk]\nexportname = /tmp/disk\n' >config
nbd-server -C /tmp/config
until ss -ltn | grep -q :10809; do sleep 0.1; done
qemu-nbd --persistent --shared=0 --format=raw --socket=/tmp/qemu --fork --pid-file=/tmp/qemu.pid nbd://127.0.0.1/disk
nbdkit --unix /tmp/nbdkit nbd nbd://127.0.0.1/disk
cat >look.py <<'PY'
import nbd


def connect(uri):
    client = nbd.NBD()
    client.connect_uri(uri)
    return client


for name, uri in (
    ("nbd-server", "nbd://127.0.0.1/disk"),
    ("nbdkit", "nbd+unix:///?socket=/tmp/nbdkit"),
    ("qemu-nbd", "nbd+unix:///?socket=/tmp/qemu"),
):
    client = connect(uri)
    print(f"{name}: FLUSH {client.can_flush()}, FUA {client.can_fua()}, TRIM {client.can_trim()}")
client.pwrite(b"x" * 4096, 0)
client.flush()
client.pwrite(b"x" * 4096, 0, nbd.CMD_FLAG_FUA)
client.trim(65536, 0)
print("qemu-nbd: all succeed")
PY
python3 look.py
kill "$(cat qemu.pid)"
END
cat "$scratch/found"
expect 'the server' 'nbd-server: FLUSH False, FUA False, TRIM False' "$(grep ^nbd-server "$scratch/found")"
expect 'a proxy' 'nbdkit: FLUSH False, FUA False, TRIM False' "$(grep ^nbdkit "$scratch/found")"
expect 'another' 'qemu-nbd: FLUSH True, FUA True, TRIM True' "$(grep '^qemu-nbd: F' "$scratch/found")"
expect 'requests to it' 'qemu-nbd: all succeed' "$(grep '^qemu-nbd: all' "$scratch/found")"
