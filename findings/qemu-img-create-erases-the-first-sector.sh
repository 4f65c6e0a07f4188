#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# qemu-img create -f raw, given the URI of an NBD export, cannot create anything there. QEMU 10.0.13 opens the export, takes it
# if it is at least as large as asked, fills its first sector with zeroes, and exits with 0 after a line with the size
# that was asked. So the partition table of the disk is gone, its size stays, and all other data are still there. If
# more is asked than the export has, it is refused before anything is written. 7.2 and 11.1.3 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie qemu-utils=1:10.0.13+ds-0+deb13u1 nbdkit=1.42.3-1 libnbd-bin=1.22.2-1+b1 fdisk=2.41.5-0+deb13u1
in_root >"$scratch/found" <<'END'
cd /tmp
uri='nbd+unix:///?socket=/tmp/socket'
head -c 4M /dev/zero | tr '\0' D >disk
printf 'label: gpt\n,1M\n' | sfdisk --quiet disk
cp disk before
nbdkit --unix /tmp/socket file disk
partitions() { sfdisk --dump disk 2>/dev/null | grep -c ' start=' || :; }
echo "before: partitions $(partitions)"
create() { # SIZE
    qemu-img create -f raw "$uri" "$1" >said 2>&1 && result=0 || result=$?
    sed 's/^/said: /' said
    echo "$1: exit $result, size $(nbdinfo --size "$uri"), partitions $(partitions)," \
        "changed bytes of the first 512 $(cmp -l -n 512 before disk | wc -l), behind them $(cmp -l -i 512 before disk | wc -l)"
}
create 8M
create 1M
echo "at the end: $(tail -c 512 disk | head -c 8)"
END
cat "$scratch/found"
expect 'a GPT' 'before: partitions 1' "$(grep '^before' "$scratch/found")"
expect 'asked for more than the export has' '8M: exit 1, size 4194304, partitions 1, changed bytes of the first 512 0, behind them 0' \
    "$(grep '^8M' "$scratch/found")"
expect 'asked for less' '1M: exit 0, size 4194304, partitions 0, changed bytes of the first 512 450, behind them 0' \
    "$(grep '^1M' "$scratch/found")"
expect 'the other table' 'at the end: EFI PART' "$(grep '^at the end' "$scratch/found")"
