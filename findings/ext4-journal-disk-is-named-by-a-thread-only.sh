#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113: an ext4 with its journal on another disk holds that disk (mkfs.ext4 is refused), but neither its line in
# mountinfo nor the disk's holders in /sys say so. The only sign is the kernel thread of the journal, named after the
# disk, which /sys/fs/ext4/DISK/journal_task names by its number.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2 mount \
    e2fsprogs=1.47.2-3+b12
in_guest >"$scratch/found" <<'END'
uname -r
modprobe loop
mkdir /run/files
truncate -s 400M /run/disk
losetup /dev/loop0 /run/disk
nbdkit --unix /run/other memory 400M
nbd-client -unix /run/other /dev/nbd0 >/dev/null 2>&1
until [ "$(cat /sys/block/nbd0/size)" = 819200 ]; do sleep 0.1; done
signs() { # KIND
    echo "$1: mounts that name it: $(grep -c nbd0 /proc/self/mountinfo || :)"
    echo "$1: holders: $(ls /sys/block/nbd0/holders | wc -l)"
    mkfs.ext4 -q -F /dev/nbd0 >/dev/null 2>&1 && echo "$1: formatted" || echo "$1: refused"
}
mke2fs -q -F -O journal_dev /dev/nbd0
mkfs.ext4 -q -F -J device=/dev/nbd0 /dev/loop0
mount /dev/loop0 /run/files
signs ext4
echo "thread: $(cat "/proc/$(cat /sys/fs/ext4/loop0/journal_task)/comm")"
umount /run/files
nbd-client -d /dev/nbd0 >/dev/null 2>&1
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'a journal of ext4' 'ext4: refused' "$(grep -E '^ext4: (refused|formatted)' "$scratch/found")"
expect 'mountinfo' 'ext4: mounts that name it: 0' "$(grep '^ext4: mounts' "$scratch/found")"
expect 'in /sys' 'ext4: holders: 0' "$(grep '^ext4: holders' "$scratch/found")"
expect 'its thread' 'thread: jbd2/nbd0' "$(grep '^thread' "$scratch/found")"
