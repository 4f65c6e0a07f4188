#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113: "blockdev --flushbufs" (the ioctl BLKFLSBUF) writes what a disk has in the page cache, and succeeds also
# if the writes fail; so does sync without arguments. fsync of the device ("sync /dev/nbd0") reports the error, once: a
# second one succeeds, though nothing has been written. A script that flushes before it detaches a disk must use fsync,
# and the first one decides. 6.1.176 and 7.2.7 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2
in_guest >"$scratch/found" <<'END'
tried() { # NAME COMMAND...
    name=$1
    shift
    if "$@" 2>/dev/null; then echo "$name: succeeds"; else echo "$name: fails"; fi
}
uname -r
attach --filter=log eval logfile=/run/log get_size='echo 1M' pread='head -c $3 /dev/zero' can_write='exit 0' \
    can_flush='exit 0' flush='exit 0' pwrite='cat >/dev/null; echo EIO >&2; exit 1'
exec 9<>/dev/nbd0 # no last close, which writes too
head -c 4096 /dev/zero >&9
tried flushbufs blockdev --flushbufs /dev/nbd0
echo "writes that failed: $(grep -c 'Write .*return=-1' /run/log)"
tried sync sync
tried 'first fsync' sync /dev/nbd0
tried 'second fsync' sync /dev/nbd0
echo "writes in all: $(grep -c 'Write .*return=-1' /run/log)"
exec 9>&-
detach
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'blockdev --flushbufs' 'flushbufs: succeeds' "$(grep '^flushbufs' "$scratch/found")"
expect 'the server has refused' 'writes that failed: 1' "$(grep '^writes that' "$scratch/found")"
expect 'sync of all' 'sync: succeeds' "$(grep '^sync' "$scratch/found")"
expect 'fsync of the disk' 'first fsync: fails' "$(grep '^first' "$scratch/found")"
expect 'fsync again' 'second fsync: succeeds' "$(grep '^second' "$scratch/found")"
expect 'the server has refused' 'writes in all: 1' "$(grep '^writes in' "$scratch/found")"
