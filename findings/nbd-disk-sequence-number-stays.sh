#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113, nbd: the sequence number of a disk (/sys/block/DISK/diskseq, the ioctl BLKGETDISKSEQ, the links of udev
# in /dev/disk/by-diskseq) is there to tell one medium from the next under the same name. A loop device gets a new one
# with each file, and so does an nbd device with each server that is attached by ioctl (nbd-client -nonetlink). Attached by
# netlink, as nbd-client 3.26.1 does by default, it keeps its number: a program that compares the numbers takes another
# server's disk for the same one. 7.2.7 does the same; 6.1.176 keeps the number by ioctl too.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2 mount
in_guest >"$scratch/found" <<'END'
number() { cat "/sys/block/$1/diskseq"; }
uname -r
attach data '"one" * 1000' size=1M
echo "nbd0 first: $(head -c 3 /dev/nbd0) $(number nbd0)"
detach
attach data '"two" * 1000' size=1M
echo "nbd0 second: $(head -c 3 /dev/nbd0) $(number nbd0)"
detach
rm -f /run/sock
nbdkit --unix /run/sock memory 1M
nbd-client -unix /run/sock /dev/nbd0 -nonetlink >/dev/null 2>&1 &
until [ "$(cat /sys/block/nbd0/size)" = 2048 ]; do sleep 0.1; done
sleep 1
[ "$(number nbd0)" = 1 ] && echo 'nbd0 by ioctl: as before' || echo 'nbd0 by ioctl: another one'
nbd-client -d /dev/nbd0 >/dev/null 2>&1
modprobe loop
truncate -s 1M /run/one /run/two
losetup /dev/loop0 /run/one
first=$(number loop0)
losetup -d /dev/loop0
losetup /dev/loop0 /run/two
[ "$(number loop0)" = "$first" ] && echo 'loop0: as before' || echo 'loop0: another one'
losetup -d /dev/loop0
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'data and number of the first server' 'nbd0 first: one 1' "$(grep 'nbd0 first' "$scratch/found")"
expect 'of the second' 'nbd0 second: two 1' "$(grep 'nbd0 second' "$scratch/found")"
expect 'of a third one' 'nbd0 by ioctl: another one' "$(grep 'by ioctl' "$scratch/found")"
expect 'a loop device with another file' 'loop0: another one' "$(grep loop0 "$scratch/found")"
