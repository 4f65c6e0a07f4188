#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbdkit's filter "cache" keeps writes until a flush, and answers reads from there, but answers BLOCK_STATUS from the file
# below it. In 1.42.3 a block that was written to a sparse file is therefore a hole of zeroes until the first flush, and
# clients that ask for holes, as nbdcopy and qemu-img convert do, copy zeroes instead of the data, with exit status 0. A
# plain read shows the data. 1.32.5 and 1.48.1 do the same. cache=writethrough does not.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbdkit=1.42.3-1 libnbd-bin=1.22.2-1+b1 python3-libnbd=1.22.2-1+b1 qemu-utils=1:10.0.13+ds-0+deb13u1
in_root >"$scratch/found" <<'END'
cd /tmp
uri='nbd+unix:///?socket=/tmp/socket'
cat >write.py <<'PY'
import nbd

client = nbd.NBD()
client.connect_unix("/tmp/socket")
client.pwrite(b"new!" * 16384, 0)
client.shutdown()
PY
for mode in writeback writethrough; do
    rm -f disk socket copy
    truncate -s 1M disk
    nbdkit --unix /tmp/socket --pidfile /tmp/pid --filter=cache file disk cache=$mode
    python3 write.py
    echo "$mode: first extent $(nbdinfo --map "$uri" | awk 'NR == 1 { print $2, $4 }')"
    echo "$mode: read $(nbdcopy --no-extents "$uri" - | head -c 4)"
    echo "$mode: nbdcopy $(nbdcopy "$uri" - | head -c 4 | tr '\0' 0)"
    qemu-img convert -O raw "$uri" copy
    echo "$mode: qemu-img $(head -c 4 copy | tr '\0' 0)"
    kill "$(cat pid)"
done
END
cat "$scratch/found"
expect 'what a read gets' 'writeback: read new!' "$(grep 'writeback: read' "$scratch/found")"
expect 'the extent there' 'writeback: first extent 1048576 hole,zero' "$(grep 'writeback: first' "$scratch/found")"
expect 'a copy by nbdcopy' 'writeback: nbdcopy 0000' "$(grep 'writeback: nbdcopy' "$scratch/found")"
expect 'a copy by qemu-img' 'writeback: qemu-img 0000' "$(grep 'writeback: qemu' "$scratch/found")"
expect 'the extent in the other mode' 'writethrough: first extent 65536 data' "$(grep 'writethrough: first' "$scratch/found")"
expect 'a copy then' 'writethrough: nbdcopy new!' "$(grep 'writethrough: nbdcopy' "$scratch/found")"
