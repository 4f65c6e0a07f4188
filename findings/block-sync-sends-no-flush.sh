#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113: sync(2), the command "sync" without arguments, writes what is in memory, and leaves it to each file system
# to empty the disk's own cache. For a disk without a file system, ext2, FAT and UDF nothing does: no FLUSH is sent by
# "dd of=DISK; sync", by "blockdev --flushbufs", by "sync --file-system", by remount,ro or by umount. A server that loses
# its cache afterwards loses the data, though the file system is unmounted. ext4, f2fs and btrfs send one. fsync of each
# file, or "sync DISK" after umount, sends one for all. 6.1.176 does the same, as does 7.2.7 with the disk and ext2.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2 \
    e2fsprogs=1.47.2-3+b12 dosfstools=4.2-1.2 udftools=2.3-2
in_guest >"$scratch/found" <<'END'
uname -r
attach --filter=log memory 1M logfile=/run/log
sent() { # WHAT COMMAND...
    what=$1
    shift
    : >/run/log
    "$@"
    sync -d /run/log # its last lines
    echo "$what: $(grep -c ' Flush \| fua=1 ' /run/log) flushes, $(grep -q ' Write .*\.\.\.$' /run/log && echo some || echo no) writes"
}
dirty() { head -c 8192 /dev/urandom >"$1"; }
exec 9<>/dev/nbd0 # with no last close, which writes
dirty /dev/nbd0
sent 'disk, sync' sync
dirty /dev/nbd0
sent 'disk, flushbufs' blockdev --flushbufs /dev/nbd0
dirty /dev/nbd0
sent 'disk, fsync' sync /dev/nbd0
exec 9>&-
mkdir /run/files
for kind in ext2 vfat udf ext4; do
    case $kind in
    vfat) mkfs.vfat -I /dev/nbd0 ;;
    udf) mkudffs /dev/nbd0 ;;
    *) "mkfs.$kind" -qF -O ^metadata_csum /dev/nbd0 ;;
    esac >/dev/null 2>&1
    mount -t $kind /dev/nbd0 /run/files
    dirty /run/files/one
    sent "$kind, sync" sync
    dirty /run/files/two
    sent "$kind, syncfs" sync --file-system /run/files
    dirty /run/files/three
    sent "$kind, umount" umount /run/files
    sent "$kind, fsync of the disk afterwards" sync /dev/nbd0
done
detach
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
for what in 'disk, sync' 'disk, flushbufs' 'ext2, sync' 'ext2, syncfs' 'ext2, umount' 'vfat, sync' 'vfat, syncfs' 'vfat, umount' \
    'udf, sync' 'udf, syncfs' 'udf, umount'; do
    expect "without a FLUSH" "$what: 0 flushes, some writes" "$(grep "^$what:" "$scratch/found")"
done
expect 'fsync of the disk' 'disk, fsync: 1 flushes, some writes' "$(grep '^disk, fsync' "$scratch/found")"
for kind in ext2 vfat udf; do
    expect 'fsync of the disk' "$kind, fsync of the disk afterwards: 1 flushes, no writes" "$(grep "^$kind, fsync" "$scratch/found")"
done
expect 'sync of ext4' 'ext4, sync: 1 flushes, some writes' "$(grep '^ext4, sync:' "$scratch/found")"
