#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbd-server 3.26.1 with "splice = true" agrees to structured replies and then answers reads without them, which the
# protocol forbids. Clients that ask for structured replies, as libnbd's tools and QEMU do, cannot read one byte; their
# error is "Protocol error" or "Invalid argument", and nothing names the option. Clients that do not ask for them, as the
# kernel, read all: the same export is good as a device and bad for a backup. 3.27.1 does the same. 3.24, which has no
# structured replies, is right.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbd-server=1:3.26.1-6.1 libnbd-bin=1.22.2-1+b1 python3-libnbd=1.22.2-1+b1 qemu-utils=1:10.0.13+ds-0+deb13u1 iproute2
in_root >"$scratch/found" <<'END'
cd /tmp
head -c 1M /dev/urandom >disk
for name in plain splice; do
    printf '[%s]\nexportname = /tmp/disk\n' $name
done >exports
{ printf '[generic]\nuser = root\ngroup = root\nlistenaddr = 127.0.0.1\n'; cat exports; echo 'splice = true'; } >config
nbd-server -C /tmp/config
until ss -ltn | grep -q :10809; do sleep 0.1; done
cat >read.py <<'PY'
import sys
import nbd

client = nbd.NBD()
client.set_request_structured_replies(False)
client.connect_uri(sys.argv[1])
with open("/tmp/disk", "rb") as disk:
    print("all is read" if client.pread(1 << 20, 0) == disk.read() else "different")
PY
tried() {
    "$@" >/dev/null 2>&1 && cmp -s disk copy && echo 'all is read' || echo fails
    rm -f copy
}
for name in plain splice; do
    uri=nbd://127.0.0.1/$name
    echo "$name: nbdcopy: $(tried nbdcopy "$uri" copy)"
    echo "$name: qemu-img: $(tried qemu-img convert -f raw -O raw "$uri" copy)"
    echo "$name: without structured replies: $(python3 read.py "$uri")"
done
END
cat "$scratch/found"
for client in nbdcopy qemu-img 'without structured replies'; do
    expect 'an export without splice' "plain: $client: all is read" "$(grep "plain: $client" "$scratch/found")"
done
for client in nbdcopy qemu-img; do
    expect 'an export with splice' "splice: $client: fails" "$(grep "splice: $client" "$scratch/found")"
done
expect 'the same' 'splice: without structured replies: all is read' "$(grep 'splice: without' "$scratch/found")"
