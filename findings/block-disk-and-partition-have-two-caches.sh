#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113: a disk and each of its partitions have page caches of their own. fsync of the disk ("sync /dev/nbd0")
# and "blockdev --flushbufs /dev/nbd0" succeed, and leave in memory what was written to /dev/nbd0p1 while a program has
# that open: a script that then detaches the disk loses it. A read of the disk returns the old data even after an fsync of
# the partition, if the disk has that page in memory. 6.1.176 and 7.2.7 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2
in_guest >"$scratch/found" <<'END'
uname -r
# A disk with one partition, from block 8 to 1031: in a partition table of DOS.
truncate -s 1M /run/image
printf '\0\0\0\0\203\0\0\0\010\0\0\0\0\004\0\0' | dd of=/run/image bs=1 seek=446 conv=notrunc 2>/dev/null
printf '\125\252' | dd of=/run/image bs=1 seek=510 conv=notrunc 2>/dev/null
attach --filter=log file /run/image logfile=/run/log
sync /dev/nbd0 # the partition is there after the first open
mknod /run/nbd0p1 b $(tr : ' ' </sys/block/nbd0/nbd0p1/dev)
exec 8</dev/nbd0 9<>/run/nbd0p1 # with no last close, which writes and forgets
on_disk() { dd if=/dev/nbd0 bs=512 skip=8 count=1 "$@" 2>/dev/null | head -c 3 | tr '\0' 0; }
echo "the disk before: $(on_disk)"
printf new >&9
sync /dev/nbd0 && echo 'fsync of the disk: succeeds'
blockdev --flushbufs /dev/nbd0 && echo 'flushbufs of the disk: succeeds'
echo "writes by then: $(grep -c 'Write .*return=0' /run/log || :)"
on_disk >/dev/null # --flushbufs has emptied the disk's cache
sync /run/nbd0p1
echo "writes after fsync of the partition: $(grep -c 'Write .*return=0' /run/log)"
echo "the image then: $(tail -c +4097 /run/image | head -c 3)"
echo "the disk then: $(on_disk)"
echo "the disk past the cache: $(on_disk iflag=direct)"
exec 8<&- 9>&-
detach
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'fsync of the disk' 'fsync of the disk: succeeds' "$(grep '^fsync' "$scratch/found")"
expect 'BLKFLSBUF' 'flushbufs of the disk: succeeds' "$(grep '^flushbufs' "$scratch/found")"
expect 'the server has seen' 'writes by then: 0' "$(grep '^writes by' "$scratch/found")"
expect 'and later' 'writes after fsync of the partition: 1' "$(grep '^writes after' "$scratch/found")"
expect 'what the server has' 'the image then: new' "$(grep 'the image' "$scratch/found")"
expect 'what a read of the disk gets' 'the disk then: 000' "$(grep 'the disk then' "$scratch/found")"
expect 'a read with O_DIRECT' 'the disk past the cache: new' "$(grep 'past the' "$scratch/found")"
