#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113: the time of last modification of a block device's node is set by each program that writes to it, also
# with O_DIRECT, so it could tell whether a disk may have another content by now. But a program that empties all of the
# disk by BLKDISCARD, or by BLKZEROOUT, leaves it as it was, as does a file system that is mounted from the node. Another
# node of the same device keeps its own time. /sys/block/DISK/stat counts discards, and says nothing of who has written.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2 e2fsprogs=1.47.2-3+b12
in_guest >"$scratch/found" <<'END'
watched() { # WHAT COMMAND...
    what=$1 before=$(stat -c %.9Y /run/node)
    shift
    sleep 0.1
    "$@" 2>/dev/null
    sync
    [ "$(stat -c %.9Y /run/node)" = "$before" ] && echo "$what: the same time" || echo "$what: another time"
}
uname -r
attach memory 1M
for node in node other; do
    mknod "/run/$node" b $(tr : ' ' </sys/block/nbd0/dev)
done
watched write dd if=/dev/urandom of=/run/node bs=4096 count=1 conv=notrunc
watched 'direct write' dd if=/dev/urandom of=/run/node bs=4096 count=1 conv=notrunc oflag=direct
watched 'write to another node' dd if=/dev/urandom of=/run/other bs=4096 count=1 conv=notrunc
watched discard blkdiscard -f /run/node
watched zeroes blkdiscard -f -z /run/node
[ "$(head -c 4096 /run/node | tr -d '\000' | wc -c)" = 0 ] && echo 'the disk is empty'
echo "discards: $(awk '{ print $12 }' /sys/block/nbd0/stat)"
mkfs.ext4 -q /run/node
mkdir /run/files
mount /run/node /run/files
watched 'file system' dd if=/dev/urandom of=/run/files/file bs=4096 count=4
umount /run/files
detach
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'by write(2)' 'write: another time' "$(grep '^write:' "$scratch/found")"
expect 'with O_DIRECT' 'direct write: another time' "$(grep '^direct' "$scratch/found")"
expect 'by way of another node' 'write to another node: the same time' "$(grep '^write to' "$scratch/found")"
expect 'by BLKDISCARD' 'discard: the same time' "$(grep '^discard:' "$scratch/found")"
expect 'by BLKZEROOUT' 'zeroes: the same time' "$(grep '^zeroes:' "$scratch/found")"
expect 'and yet' 'the disk is empty' "$(grep '^the disk' "$scratch/found")"
expect 'by a file system' 'file system: the same time' "$(grep '^file system' "$scratch/found")"
