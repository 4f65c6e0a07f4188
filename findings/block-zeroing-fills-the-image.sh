#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113: blkdiscard --zeroout and fallocate --zero-range of a disk send WRITE_ZEROES with NO_HOLE, which asks the
# server to keep the space: a sparse file behind nbdkit gets as large as the disk. fallocate --punch-hole sends
# WRITE_ZEROES without NO_HOLE: the disk reads as zeroes then as well, and the file is empty. So blkdiscard is not the
# command that wipes a disk and frees its space. 7.2.7 does the same; 6.1.176 has no punch-hole for nbd and writes zeroes.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2 util-linux=2.41.5-0+deb13u1
in_guest >"$scratch/found" <<'END'
uname -r
size=$((64 << 20))
truncate -s $size /run/image
nbdkit --unix /run/sock --filter=log file /run/image logfile=/run/log
nbd-client -unix /run/sock /dev/nbd0 >/dev/null 2>&1
until [ "$(cat /sys/block/nbd0/size)" = 131072 ]; do sleep 0.1; done
after() { # WHAT COMMAND...
    what=$1
    shift
    dd if=/dev/urandom of=/dev/nbd0 bs=64K count=1 conv=fsync 2>/dev/null
    : >/run/log
    "$@" && result=succeeds || result=fails
    sync -d /run/log # its last lines
    cmp -s -n $size /dev/nbd0 /dev/zero && holds=zeroes || holds=data
    echo "$what: $result, $(du -k /run/image | cut -f1) KiB used, the disk has $holds," \
        "sent$(sed -n 's/.* \(Write\|Zero\|Trim\) .*\( trim=.\).*\.\.\.$/ \1\2/p; s/.* \(Write\|Trim\) .*\.\.\.$/ \1/p' /run/log | sort -u | tr -d '\n')"
}
after start true
after 'punch-hole' fallocate --punch-hole --offset 0 --length $size /dev/nbd0
after 'zeroout' blkdiscard --zeroout /dev/nbd0
after 'punch-hole of that' fallocate --punch-hole --offset 0 --length $size /dev/nbd0
after 'zero-range' fallocate --zero-range --offset 0 --length $size /dev/nbd0
nbd-client -d /dev/nbd0 >/dev/null 2>&1
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'with 64 KiB written' 'start: succeeds, 64 KiB used, the disk has data, sent' "$(grep '^start' "$scratch/found")"
for what in punch-hole 'punch-hole of that'; do
    expect 'fallocate' "$what: succeeds, 0 KiB used, the disk has zeroes, sent Zero trim=1" "$(grep "^$what:" "$scratch/found")"
done
expect 'blkdiscard' 'zeroout: succeeds, 65536 KiB used, the disk has zeroes, sent Zero trim=0' "$(grep '^zeroout' "$scratch/found")"
expect 'fallocate' 'zero-range: succeeds, 65536 KiB used, the disk has zeroes, sent Zero trim=0' "$(grep '^zero-range' "$scratch/found")"
