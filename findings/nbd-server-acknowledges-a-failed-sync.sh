#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbd-server 3.26.1 does not look at what fsync and fdatasync return after a write. With "sync = true" each write waits for
# the disk, and a write whose fsync failed is answered with success. FLUSH is not offered unless "flush = true" is set as
# well, so no later request reports the loss either. A write with FUA is answered likewise; only FLUSH reports the error.
# The errors come from strace here, in place of a disk that fails. The packages 3.24 and 3.27.1 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbd-server=1:3.26.1-6.1 python3-libnbd=1.22.2-1+b1 strace=6.13+ds-1 iproute2
in_root >"$scratch/found" <<'END'
cd /tmp
cat >config <<'INI'
[generic]
    user = root
    group = root
    listenaddr = 127.0.0.1
[sync]
    exportname = /tmp/disk
    sync = true
[fua]
    exportname = /tmp/disk
    fua = true
    flush = true
INI
cat >write.py <<'PY'
import sys
import nbd

name, flags = sys.argv[1], int(sys.argv[2])
client = nbd.NBD()
client.set_export_name(name)
client.connect_tcp("127.0.0.1", "10809")
print(name, "offers flush", client.can_flush())
client.pwrite(bytes(4096), 0, flags)
print(name, "write succeeds")
if client.can_flush():
    try:
        client.flush()
    except nbd.Error:
        print(name, "flush fails")
PY
truncate -s 1M disk
strace -f -qq -A -o trace -e signal=none -e trace=fsync,fdatasync -e inject=fsync,fdatasync:error=EIO \
    nbd-server -n -C /tmp/config 2>/dev/null &
until ss -ltn | grep -q :10809; do sleep 0.1; done
python3 write.py sync 0
echo "sync calls: $(sed 's/^[0-9 ]*//; s/(.*EIO.*/ EIO/' trace | tr '\n' ' ')"
: >trace
python3 write.py fua 1
echo "fua calls: $(sed 's/^[0-9 ]*//; s/(.*EIO.*/ EIO/' trace | tr '\n' ' ')"
END
cat "$scratch/found"
expect 'with sync' 'sync offers flush False' "$(grep '^sync offers' "$scratch/found")"
expect 'what the disk says' 'sync calls: fsync EIO ' "$(grep '^sync calls' "$scratch/found")"
expect 'what the client gets' 'sync write succeeds' "$(grep '^sync write' "$scratch/found")"
expect 'what the disk says to a write with FUA' 'fua calls: fdatasync EIO fsync EIO ' "$(grep '^fua calls' "$scratch/found")"
expect 'what the client gets' 'fua write succeeds' "$(grep '^fua write' "$scratch/found")"
expect 'and for a flush' 'fua flush fails' "$(grep '^fua flush' "$scratch/found")"
