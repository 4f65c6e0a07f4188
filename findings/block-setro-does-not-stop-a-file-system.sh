#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113: "blockdev --setro" on a disk with a mounted file system succeeds, /sys and blockdev then say that the
# disk is read-only, and programs cannot write to it. The file system goes on writing, and the server gets it all: the
# kernel only logs "Trying to write to read-only block-device", once. A copy of the disk that is made on the server then is
# a copy of a disk in use. 6.1.176 and 7.2.7 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2 mount \
    e2fsprogs=1.47.2-3+b12
in_guest >"$scratch/found" <<'END'
tried() { # NAME COMMAND...
    name=$1
    shift
    : >/run/log
    if "$@" 2>/dev/null; then result=succeeds; else result=fails; fi
    if grep -q 'Write .*return=0' /run/log; then echo "$name: $result, and is sent"; else echo "$name: $result"; fi
}
into_a_file() { echo new >/run/files/new && sync -f /run/files/new; }
into_the_disk() { dd if=/dev/zero of=/dev/nbd0 bs=4096 count=1 conv=fsync; }
uname -r
mkdir /run/files
attach --filter=log memory 1M logfile=/run/log
mkfs.ext4 -q -F -O ^has_journal /dev/nbd0
mount /dev/nbd0 /run/files
blockdev --setro /dev/nbd0
echo "read-only: $(cat /sys/block/nbd0/ro) $(blockdev --getro /dev/nbd0)"
echo "mounted: $(awk '$1 == "/dev/nbd0" { print substr($4, 1, 2) }' /proc/mounts)"
tried disk into_the_disk
tried file into_a_file
echo "warnings: $(dmesg | grep -c 'Trying to write to read-only block-device nbd0')"
umount /run/files
blockdev --setrw /dev/nbd0
detach
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'in /sys and by blockdev' 'read-only: 1 1' "$(grep '^read-only' "$scratch/found")"
expect 'the mount' 'mounted: rw' "$(grep '^mounted' "$scratch/found")"
expect 'a write to the disk' 'disk: fails' "$(grep '^disk' "$scratch/found")"
expect 'a write to a file' 'file: succeeds, and is sent' "$(grep '^file' "$scratch/found")"
expect 'in the log of the kernel' 'warnings: 1' "$(grep '^warnings' "$scratch/found")"
