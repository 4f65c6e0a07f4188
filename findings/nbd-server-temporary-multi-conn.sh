#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbd-server 3.26.1 offers an export with "temporary = true" as safe for several connections (NBD_FLAG_CAN_MULTI_CONN),
# and gives each connection a disk of its own: what one connection has written and flushed, another one does not read.
# The specification promises of that flag that a flush over one connection covers all writes, seen over any other. A
# client that spreads its requests over several connections, as the kernel's driver does, reads old data.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbd-server=1:3.26.1-6.1 nbdkit=1.42.3-1 libnbd-bin=1.22.2-1+b1 python3-libnbd=1.22.2-1+b1 iproute2
in_root >"$scratch/found" <<'END'
cd /tmp
cat >config <<'INI'
[generic]
    user = root
    group = root
    listenaddr = 127.0.0.1
[disk]
    exportname = /tmp/disk
    filesize = 1048576
    temporary = true
    flush = true
INI
nbd-server -C /tmp/config
until ss -ltn | grep -q :10809; do sleep 0.1; done
cat >two.py <<'PY'
import nbd

first, second = nbd.NBD(), nbd.NBD()
for one in first, second:
    one.set_export_name("disk")
    one.connect_tcp("127.0.0.1", "10809")
print("offered", first.can_multi_conn())
first.pwrite(b"new" + bytes(509), 0)
first.flush()
print("first", first.pread(512, 0)[:3])
print("second", second.pread(512, 0)[:3])
PY
python3 two.py
END
cat "$scratch/found"
expect 'several connections are offered' 'offered True' "$(grep offered "$scratch/found")"
expect 'what was written and flushed, over the same connection' "first bytearray(b'new')" "$(grep first "$scratch/found")"
expect 'the same over the other connection' "second bytearray(b'\\x00\\x00\\x00')" "$(grep second "$scratch/found")"
