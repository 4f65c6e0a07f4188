#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# util-linux 2.41.5 with Linux 6.12.113: "losetup --direct-io=on" attaches the loop device without direct I/O, with exit
# status 0 and no message, if the offset or the loop device's sectors do not fit the disk below. On a disk with sectors of
# 4096 bytes that is any --offset that is no multiple of 4096, and --sector-size=512. Then all data is in memory twice, and
# a write with O_DIRECT to the loop device has not come to the disk below when it returns. Only the column DIO of
# "losetup --list" tells. 7.2.7 does the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2 mount=2.41.5-0+deb13u1
in_guest >"$scratch/found" <<'END'
uname -r
modprobe loop
mount -t devtmpfs dev /dev
rm -f /run/sock
nbdkit --unix /run/sock --filter=log --filter=blocksize-policy memory 1M blocksize-minimum=4096 logfile=/run/log
nbd-client -b 4096 -unix /run/sock /dev/nbd0 >/dev/null 2>&1
until [ "$(cat /sys/block/nbd0/size)" = 2048 ]; do sleep 0.1; done
echo "sectors of $(blockdev --getss /dev/nbd0)"
tried() { # ARGUMENT...
    losetup --direct-io=on "$@" /dev/loop0 /dev/nbd0 2>/run/error && result=succeeds || result=fails
    : >/run/log
    dd if=/dev/zero of=/dev/loop0 bs=4096 count=1 oflag=direct 2>/dev/null
    sync -d /run/log
    echo "losetup $*: $result, $(wc -l </run/error) messages, DIO $(losetup --list --noheadings --output DIO | tr -d ' '), $(
        grep -c ' Write .*\.\.\.$' /run/log || :) writes by O_DIRECT have come to the disk"
    losetup --detach /dev/loop0
}
tried --offset 4096
tried --offset 512
tried --sector-size 512
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'the disk below' 'sectors of 4096' "$(sed -n 2p "$scratch/found")"
came='writes by O_DIRECT have come to the disk'
expect 'what fits' "losetup --offset 4096: succeeds, 0 messages, DIO 1, 1 $came" "$(grep 'offset 4096' "$scratch/found")"
for arguments in '--offset 512' '--sector-size 512'; do
    expect 'the rest' "losetup $arguments: succeeds, 0 messages, DIO 0, 0 $came" "$(grep -e "losetup $arguments" "$scratch/found")"
done
