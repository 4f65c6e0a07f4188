#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbd-server 3.26.1 with "copyonwrite = true" gives back other data than a client has written, as soon as a request is
# longer than its blocks of 4096 bytes: all blocks of 64 KiB that one request has written read wrong afterwards. Each
# request succeeds. Requests of one block are right. A file system there destroys itself. 3.24 and 3.27.1 are right.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbd-server=1:3.26.1-6.1 nbdkit=1.42.3-1 libnbd-bin=1.22.2-1+b1 python3-libnbd=1.22.2-1+b1 iproute2
in_root >"$scratch/found" <<'END'
cd /tmp
truncate -s 16M disk
cat >config <<'INI'
[generic]
    user = root
    group = root
    listenaddr = 127.0.0.1
[disk]
    exportname = /tmp/disk
    copyonwrite = true
INI
nbd-server -C /tmp/config
until ss -ltn | grep -q :10809; do sleep 0.1; done
cat >write.py <<'PY'
import nbd

client = nbd.NBD()
client.set_export_name("disk")
client.connect_tcp("127.0.0.1", "10809")
for place, length in ((1 << 20, 4096), (2 << 20, 65536)):
    data = b"".join(bytes([number + 1]) * 4096 for number in range(length // 4096))
    client.pwrite(data, place)
    found = client.pread(length, place)
    wrong = sum(found[at : at + 4096] != data[at : at + 4096] for at in range(0, length, 4096))
    print(f"{length} bytes in one request: {wrong} of {length // 4096} blocks are wrong")
PY
python3 write.py
END
cat "$scratch/found"
expect 'one block' '4096 bytes in one request: 0 of 1 blocks are wrong' "$(grep ^4096 "$scratch/found")"
expect 'sixteen blocks' '65536 bytes in one request: 16 of 16 blocks are wrong' "$(grep ^65536 "$scratch/found")"
