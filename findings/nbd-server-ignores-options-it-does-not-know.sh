#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbd-server 3.26.1 accepts options that it does not know, and logs nothing. One of them is "timeout", which nbd-server(5)
# describes (it "will forcibly disconnect" an idle connection): the connection stays open. A mistyped option is ignored in
# the same way: with "read_only = true" instead of "readonly" the export takes writes. Only a client can tell whether an
# option has its effect. The packages 3.24 and 3.27.1 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbd-server=1:3.26.1-6.1 python3-libnbd=1.22.2-1+b1 iproute2
in_root >"$scratch/found" <<'END'
cd /tmp
cat >config <<'INI'
[generic]
    user = root
    group = root
    listenaddr = 127.0.0.1
[right]
    exportname = /tmp/disk
    readonly = true
[mistyped]
    exportname = /tmp/disk
    read_only = true
[idle]
    exportname = /tmp/disk
    timeout = 2
INI
cat >client.py <<'PY'
import time
import nbd

def client(name):
    one = nbd.NBD()
    one.set_export_name(name)
    one.connect_tcp("127.0.0.1", "10809")
    return one

idle = client("idle")
print("right: read-only", client("right").is_read_only())
mistyped = client("mistyped")
mistyped.pwrite(b"new!" * 128, 0)
print("mistyped: read-only", mistyped.is_read_only(), bytes(mistyped.pread(4, 0)))
time.sleep(10)
print("idle for 10 s:", bytes(idle.pread(4, 0)))
PY
truncate -s 1M disk
nbd-server -n -C /tmp/config >log 2>&1 &
until ss -ltn | grep -q :10809; do sleep 0.1; done
python3 client.py
echo "log about options: $(grep -c -E 'option|timeout|read_only' log || :)"
END
cat "$scratch/found"
expect 'with "readonly = true"' 'right: read-only True' "$(grep '^right' "$scratch/found")"
expect 'with "read_only = true"' "mistyped: read-only False b'new!'" "$(grep '^mistyped' "$scratch/found")"
expect 'with "timeout = 2"' "idle for 10 s: b'new!'" "$(grep '^idle' "$scratch/found")"
expect 'lines of the log about it' 'log about options: 0' "$(grep '^log' "$scratch/found")"
