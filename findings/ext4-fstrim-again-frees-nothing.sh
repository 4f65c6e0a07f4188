#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113: ext4 remembers which groups it has trimmed, until it is unmounted. A second fstrim succeeds, says 0 B,
# and sends nothing. If the server did not free the space the first time (qemu-nbd without --discard=unmap says that it
# did), or was given a full copy of the disk since, fstrim frees nothing until the file system is mounted anew; remounting
# is not enough. xfs sends each time. 6.1.176 and 7.2.7 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2 mount \
    e2fsprogs=1.47.2-3+b12 util-linux=2.41.5-0+deb13u1
in_guest >"$scratch/found" <<'END'
uname -r
mkdir /run/files
truncate -s 64M /run/image
nbdkit --unix /run/sock --filter=log file /run/image logfile=/run/log
nbd-client -unix /run/sock /dev/nbd0 >/dev/null 2>&1
until [ "$(cat /sys/block/nbd0/size)" = 131072 ]; do sleep 0.1; done
trimmed() { # NAME: fills the holes of the image first, as an image that was copied has none
    cp --sparse=never /run/image /run/copy
    dd if=/run/copy of=/run/image bs=1M conv=notrunc 2>/dev/null
    rm /run/copy
    before=$(du -k /run/image | cut -f1)
    : >/run/log
    fstrim /run/files && echo "$1: succeeds, sent $(($(grep -c 'Trim .*return=0' /run/log || :) > 0))"
    echo "$1: freed more than 40 MiB $((before - $(du -k /run/image | cut -f1) > 40960))"
}
mkfs.ext4 -q -F -E nodiscard /dev/nbd0
mount /dev/nbd0 /run/files
trimmed first
trimmed second
mount -o remount,ro /run/files
mount -o remount,rw /run/files
trimmed remounted
umount /run/files
mount /dev/nbd0 /run/files
trimmed 'mounted anew'
umount /run/files
nbd-client -d /dev/nbd0 >/dev/null 2>&1
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'the first time' 'first: succeeds, sent 1' "$(grep '^first: suc' "$scratch/found")"
expect 'and' 'first: freed more than 40 MiB 1' "$(grep '^first: freed' "$scratch/found")"
expect 'with an image that was filled meanwhile' 'second: succeeds, sent 0' "$(grep '^second: suc' "$scratch/found")"
expect 'and' 'second: freed more than 40 MiB 0' "$(grep '^second: freed' "$scratch/found")"
expect 'remounted' 'remounted: succeeds, sent 0' "$(grep '^remounted: suc' "$scratch/found")"
expect 'unmounted and mounted' 'mounted anew: succeeds, sent 1' "$(grep '^mounted anew: suc' "$scratch/found")"
expect 'and' 'mounted anew: freed more than 40 MiB 1' "$(grep '^mounted anew: freed' "$scratch/found")"
