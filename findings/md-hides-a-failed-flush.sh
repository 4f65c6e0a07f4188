#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113: md sends a FLUSH to each disk of an array, and ignores its errors. If all disks of a RAID 0, or of a
# RAID 1 that is being written, fail it, fsync of the array succeeds, the program takes its data for safe, and the array
# keeps all of its disks. Only the kernel's log has a line, "flush io error". The same disk without md, and a striped
# device of device-mapper, fail the fsync with EIO. 6.1.176 and 7.2.7 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2 mdadm=4.4-11+deb13u1 dmsetup=2:1.02.205-2
in_guest >"$scratch/found" <<'END'
uname -r
cat >/run/plugin <<'SH'
case $1 in
get_size) echo 16M ;;
can_write | can_flush) ;;
pread) dd if="/run/disk$N" skip="$4" count="$3" iflag=count_bytes,skip_bytes status=none ;;
pwrite) dd of="/run/disk$N" seek="$4" conv=notrunc oflag=seek_bytes status=none ;;
flush)
    [ ! -e /run/failing ] || {
        echo "$N" >>/run/failed
        echo 'EIO the cache is lost' >&2
        exit 1
    }
    ;;
*) exit 2 ;;
esac
SH
chmod 755 /run/plugin
for number in 0 1; do
    truncate -s 16M "/run/disk$number"
    N=$number nbdkit --unix "/run/sock$number" sh /run/plugin
    nbd-client -unix "/run/sock$number" "/dev/nbd$number" >/dev/null 2>&1
    until [ "$(cat "/sys/block/nbd$number/size")" = 32768 ]; do sleep 0.1; done
done
modprobe dm-mod
mount -t devtmpfs dev /dev
write_and_sync() { # WHAT DEVICE
    : >/run/failed
    touch /run/failing
    dd if=/dev/urandom of="$2" bs=4096 count=1 conv=notrunc,fsync 2>/dev/null && result=succeeds || result=fails
    rm /run/failing
    echo "$1: flushes failed on $(sort -u /run/failed | wc -l) disks, fsync $result"
}
write_and_sync 'one disk' /dev/nbd0
dmsetup create --noudevsync striped --table '0 32768 striped 2 128 /dev/nbd0 0 /dev/nbd1 0'
dmsetup mknodes
write_and_sync 'dm striped' /dev/mapper/striped
dmsetup remove --noudevsync striped
for level in 1 0; do
    modprobe raid$level
    yes | mdadm --create /dev/md0 --run --level=$level --raid-devices=2 $([ $level = 0 ] || echo --assume-clean --bitmap=none) \
        /dev/nbd0 /dev/nbd1 2>/dev/null
    [ $level = 0 ] || echo 100 >/sys/block/md0/md/safe_mode_delay # no write of its own once it is in use
    dd if=/dev/urandom of=/dev/md0 bs=4096 count=1 conv=notrunc,fsync 2>/dev/null
    write_and_sync "RAID $level" /dev/md0
    echo "RAID $level afterwards: $(mdadm --detail /dev/md0 | grep -c 'active sync') of 2 disks"
    mdadm --stop /dev/md0 2>/dev/null
done
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'without md' 'one disk: flushes failed on 1 disks, fsync fails' "$(grep '^one' "$scratch/found")"
expect 'with device-mapper' 'dm striped: flushes failed on 2 disks, fsync fails' "$(grep '^dm' "$scratch/found")"
for level in 1 0; do
    expect 'with md' "RAID $level: flushes failed on 2 disks, fsync succeeds" "$(grep "^RAID $level:" "$scratch/found")"
    expect 'and' "RAID $level afterwards: 2 of 2 disks" "$(grep "^RAID $level after" "$scratch/found")"
done
