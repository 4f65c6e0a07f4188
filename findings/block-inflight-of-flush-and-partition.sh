#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113: no single file of a disk in /sys tells whether a request is under way. A FLUSH is not in
# /sys/block/DISK/inflight, but in the ninth number of /sys/block/DISK/stat. A write to a partition is the other way
# round: in inflight, and not in the disk's stat, only in that of the partition. Who waits for a quiet moment, as before
# a change of limits that freezes the queue, must add them up. Seen with an nbd device, whose server takes its time.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2
in_guest >"$scratch/found" <<'END'
under_way() {
    until [ -e /run/begun ]; do sleep 0.1; done
    echo "$1: inflight $(($(awk '{ print $1 + $2 }' /sys/block/nbd0/inflight)))"
    echo "$1: stat of the disk $(awk '{ print $9 }' /sys/block/nbd0/stat)"
    [ ! -e /sys/block/nbd0/nbd0p1 ] || echo "$1: stat of the partition $(awk '{ print $9 }' /sys/block/nbd0/nbd0p1/stat)"
    touch /run/gate
    wait
    rm -f /run/begun /run/gate
}
uname -r
wait_for_gate='touch /run/begun; until [ -e /run/gate ]; do sleep 0.1; done'
# A disk with one partition, from block 8 to 1031: in a partition table of DOS.
truncate -s 1M /run/image
printf '\0\0\0\0\203\0\0\0\010\0\0\0\0\004\0\0' | dd of=/run/image bs=1 seek=446 conv=notrunc 2>/dev/null
printf '\125\252' | dd of=/run/image bs=1 seek=510 conv=notrunc 2>/dev/null
attach eval get_size='echo 1M' pread='tail -c +$(($4 + 1)) /run/image | head -c $3' can_write='exit 0' can_flush='exit 0' \
    pwrite="cat >/dev/null; $wait_for_gate" flush="$wait_for_gate"

sync /dev/nbd0 &
under_way flush
mknod /run/nbd0p1 b $(tr : ' ' </sys/block/nbd0/nbd0p1/dev)
dd if=/dev/zero of=/run/nbd0p1 bs=4096 count=1 oflag=direct 2>/dev/null &
under_way write
detach
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'during a flush' 'flush: inflight 0' "$(grep 'flush: inflight' "$scratch/found")"
expect 'meanwhile' 'flush: stat of the disk 1' "$(grep 'flush: stat of the disk' "$scratch/found")"
expect 'during a write to a partition' 'write: inflight 1' "$(grep 'write: inflight' "$scratch/found")"
expect 'meanwhile' 'write: stat of the disk 0' "$(grep 'write: stat of the disk' "$scratch/found")"
expect 'and' 'write: stat of the partition 1' "$(grep 'write: stat of the partition' "$scratch/found")"
