#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113, nbd: queue/write_cache set to "write through" stays after a detach, for the next server at that device.
# That server offers FLUSH, fsync succeeds, and no NBD_CMD_FLUSH is sent: what the server has in its cache is not safe.
# Nobody who attaches the device with nbd-client can see it. Linux 6.1 sets the attribute anew at each attach.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2
in_guest >"$scratch/found" <<'END'
write_and_sync() {
    : >/run/log
    dd if=/dev/zero of=/dev/nbd0 bs=4096 count=1 conv=fsync 2>/dev/null && echo "$1: fsync succeeds"
    echo "$1: flushes $(grep -c ' Flush ' /run/log)"
}
uname -r
attach --filter=log memory 1M logfile=/run/log
echo "first: $(cat /sys/block/nbd0/queue/write_cache)"
write_and_sync first
echo 'write through' >/sys/block/nbd0/queue/write_cache
detach
attach --filter=log memory 1M logfile=/run/log
echo "second: $(cat /sys/block/nbd0/queue/write_cache)"
write_and_sync second
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'at first' 'first: write back' "$(grep 'first: write' "$scratch/found")"
expect 'the first server sees' 'first: flushes 1' "$(grep 'first: flushes' "$scratch/found")"
expect 'after detach and attach' 'second: write through' "$(grep 'second: write' "$scratch/found")"
expect 'fsync there' 'second: fsync succeeds' "$(grep 'second: fsync' "$scratch/found")"
expect 'the second server sees' 'second: flushes 0' "$(grep 'second: flushes' "$scratch/found")"
