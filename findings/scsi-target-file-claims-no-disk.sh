#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12.113: a disk that the kernel's SCSI target has as a file ("fileio") is in use by the kernel alone, and
# nothing says so: no claim keeps mkfs.ext4 from it, /sys shows no holder, no process has it open, and no mount names it.
# With the other back end for disks ("iblock") mkfs.ext4 is refused. So whoever detaches or formats disks has to read the
# target's settings in configfs.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2 e2fsprogs=1.47.2-3+b12
in_guest >"$scratch/found" <<'END'
uname -r
modprobe -a configfs target_core_file target_core_iblock
mount -t configfs none /sys/kernel/config
attach memory 1M
passed_on() { # BACKEND SETTING
    place=/sys/kernel/config/target/core/$1_0/disk
    mkdir -p "$place"
    echo "$2" >"$place/control"
    echo 1 >"$place/enable"
    echo "$1 is on: $(grep -c /dev/nbd0 "$place/info")"
    mkfs.ext4 -q -F /dev/nbd0 >/dev/null 2>&1 && echo "$1: formatted" || echo "$1: refused"
    echo "$1: holders: $(ls /sys/block/nbd0/holders | wc -l)"
    echo "$1: processes: $(ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c /dev/nbd0 || :)"
    rmdir "$place" "$(dirname "$place")"
}
passed_on fileio fd_dev_name=/dev/nbd0,fd_dev_size=1048576
passed_on iblock udev_path=/dev/nbd0
detach
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'the target has it as a file' 'fileio is on: 1' "$(grep '^fileio is' "$scratch/found")"
expect 'and yet' 'fileio: formatted' "$(sed -n '/^fileio is/{n;p;}' "$scratch/found")"
expect 'in /sys' 'fileio: holders: 0' "$(grep '^fileio: holders' "$scratch/found")"
expect 'in /proc' 'fileio: processes: 0' "$(grep '^fileio: processes' "$scratch/found")"
expect 'the target has it as a disk' 'iblock is on: 1' "$(grep '^iblock is' "$scratch/found")"
expect 'then' 'iblock: refused' "$(sed -n '/^iblock is/{n;p;}' "$scratch/found")"
expect 'in /sys' 'iblock: holders: 0' "$(grep '^iblock: holders' "$scratch/found")"
