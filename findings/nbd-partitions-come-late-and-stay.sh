#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113, nbd: after an attach through netlink the partitions of the disk do not appear by themselves, however long
# a script waits. The kernel reads the table when the disk is opened the next time. udev does that on most systems, an
# initramfs without udev does not. After a detach the partitions stay in /sys, with their sizes, until the next open, also
# while the next server's disk is attached, which has none. 6.1.176 and 7.2.7 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2
in_guest >"$scratch/found" <<'END'
# A disk with one partition, from block 8 to 1031: in a partition table of DOS.
truncate -s 1M /run/image
printf '\0\0\0\0\203\0\0\0\010\0\0\0\0\004\0\0' | dd of=/run/image bs=1 seek=446 conv=notrunc 2>/dev/null
printf '\125\252' | dd of=/run/image bs=1 seek=510 conv=notrunc 2>/dev/null
state() { echo "$1: $(cat /sys/block/nbd0/size) $(cat /sys/block/nbd0/nbd0p1/size 2>/dev/null || echo none)"; }
uname -r
attach file /run/image
sleep 5
state attached
: </dev/nbd0
state opened
detach
sleep 5
state detached
attach memory 1M
sleep 5
state 'attached to another server'
: </dev/nbd0
state 'opened then'
detach
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'size of disk and partition 5 s after the attach' 'attached: 2048 none' "$(grep '^attached: ' "$scratch/found")"
expect 'after an open' 'opened: 2048 1024' "$(grep '^opened: ' "$scratch/found")"
expect '5 s after the detach' 'detached: 0 1024' "$(grep '^detached: ' "$scratch/found")"
expect '5 s after another server is there' 'attached to another server: 2048 1024' "$(grep '^attached to' "$scratch/found")"
expect 'after an open' 'opened then: 2048 none' "$(grep '^opened then' "$scratch/found")"
