#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113: vfat, udf and f2fs are mounted read-write, without a line in the log, on a disk that is shorter than their
# file system, as after a copy that was cut short or with an export that has shrunk; df shows the old size. If a file on vfat
# or udf lies across the end of the disk, write, syncfs and fsync of it succeed, and its part behind the end is lost: half
# of a file of 20 MiB, when it was written at once. Only a file that lies behind the end as a whole fails with EIO, as
# does f2fs. fsck.vfat -n sees it. ext2, ext4, xfs and btrfs refuse such a disk. 6.1.176 and 7.2.7 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2 mount e2fsprogs=1.47.2-3+b12 \
    dosfstools=4.2-1.2 udftools=2.3-2 f2fs-tools=1.16.0-1.1+b1 xfsprogs=6.13.0-2+deb13u1 btrfs-progs=6.14-1
in_guest >"$scratch/found" <<'END'
uname -r
mkdir /run/files
attempt() { # WHAT COMMAND...
    what=$1
    shift
    "$@" >/dev/null 2>&1 && echo "$kind: $what succeeds" || echo "$kind: $what fails"
}
for kind in vfat udf f2fs ext2 ext4 xfs btrfs; do
    case $kind in
    vfat | udf) size=100 cut=40 ;;
    *) size=320 cut=160 ;;
    esac
    rm -f /run/image /run/sock
    truncate -s ${size}M /run/image
    case $kind in
    udf) mkudffs /run/image ;;
    ext?) "mkfs.$kind" -F /run/image ;;
    *) "mkfs.$kind" /run/image ;;
    esac >/dev/null 2>&1
    truncate -s $((size - cut))M /run/image
    nbdkit --unix /run/sock --pidfile /run/pid file /run/image
    nbd-client -unix /run/sock /dev/nbd0 >/dev/null 2>&1
    until [ "$(cat /sys/block/nbd0/size)" != 0 ]; do sleep 0.1; done
    [ $kind != vfat ] || attempt 'fsck -n' fsck.vfat -n /dev/nbd0
    dmesg --clear
    attempt mount mount -t $kind /dev/nbd0 /run/files
    if mountpoint -q /run/files; then
        echo "$kind: lines in the log that name the size $(dmesg | grep -ciE 'size|beyond|geometry' || :)"
        echo "$kind: df shows more than the disk has $(($(df -k --output=size /run/files | tail -n 1) > (size - cut) * 1024))"
    fi
    case $kind in
    vfat | udf)
        dd if=/dev/zero of=/run/files/first bs=1M count=50 conv=fsync 2>/dev/null
        synced=0 failed=0 lost=0
        for number in $(seq 30); do # one after the other, over the end
            file=/run/files/$number
            if ! { dd if=/dev/urandom of="$file" bs=512K count=1 && cp "$file" /run/wanted && sync --file-system /run/files && sync "$file"; }; then
                failed=$((failed + 1))
                continue
            fi 2>/dev/null
            synced=$((synced + 1))
            echo 1 >/proc/sys/vm/drop_caches
            cmp -s "$file" /run/wanted || lost=$((lost + 1))
        done
        echo "$kind: written and synced $synced files, of which is damaged $lost, with an error $failed"
        ;;
    f2fs) attempt 'fsync behind the end' dd if=/dev/urandom of=/run/files/file bs=1M count=150 conv=fsync ;;
    esac
    ! mountpoint -q /run/files || attempt umount umount /run/files
    nbd-client -d /dev/nbd0 >/dev/null 2>&1
    until [ "$(cat /sys/block/nbd0/size)" = 0 ]; do sleep 0.1; done
    kill "$(cat /run/pid)"
done
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
said() { grep "^$1" "$scratch/found"; }
for kind in vfat udf; do
    expect 'a disk that is too short' "$kind: mount succeeds" "$(said "$kind: mount")"
    expect 'the log' "$kind: lines in the log that name the size 0" "$(said "$kind: lines")"
    expect df "$kind: df shows more than the disk has 1" "$(said "$kind: df")"
    expect 'files of 512 KiB each' "$kind: written and synced 20 files, of which is damaged 1, with an error 10" "$(said "$kind: written")"
done
expect 'a disk that is too short' 'f2fs: mount succeeds' "$(said 'f2fs: mount')"
expect 'a file there' 'f2fs: fsync behind the end fails' "$(said 'f2fs: fsync behind')"
expect fsck 'vfat: fsck -n fails' "$(said 'vfat: fsck')"
for kind in ext2 ext4 xfs btrfs; do
    expect 'a disk that is too short' "$kind: mount fails" "$(said "$kind: mount")"
done
