#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbdkit's partitioning plugin makes a GPT around files. With 1.42.3 the UUID of each such disk is zero, and the UUIDs of its
# partitions depend only on the second in which nbdkit was started: after a restart, PARTUUID= in fstab or on the
# kernel's command line finds nothing, and two disks with other files have the same PARTUUID if their servers were
# started in the same second, as at boot. With a DOS table the identifier of each disk is zero. 1.32.5 and 1.48.1 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbdkit=1.42.3-1 libnbd-bin=1.22.2-1+b1 fdisk=2.41.5-0+deb13u1
in_root >"$scratch/found" <<'END'
cd /tmp
truncate -s 8M system
head -c 16M /dev/urandom >data
serve() { # NAME TYPE
    nbdkit --unix "/tmp/$1.socket" --pidfile "/tmp/$1.pid" partitioning "partition-type=$2" "$1"
}
stop() { # NAME...
    for name; do
        kill "$(cat "$name.pid")"
        while kill -0 "$(cat "$name.pid")" 2>/dev/null; do sleep 0.1; done
        rm "$name.socket"
    done
}
show() { # NAME: the identifiers in its table
    nbdcopy "nbd+unix:///?socket=/tmp/$1.socket" copy
    sfdisk --dump copy | sed -n "s/^label-id: /disk /p; s/.*uuid=\([^,]*\).*/partition \1/p"
}
until # both in one second
    begun=$(date +%s)
    serve system gpt
    serve data gpt
    [ "$(date +%s)" = "$begun" ]
do
    stop system data
done
show system >first
show data >second
grep -h '^disk' first second | sort -u
cmp -s first second && echo 'in one second: the same UUIDs' || echo 'in one second: other UUIDs'
stop system
sleep 1.1
serve system gpt
show system >third
echo "started again: $(comm -12 first third | grep -c partition || :) of $(grep -c partition third) partitions have the UUID of before"
stop system data
serve system mbr
show system | sed 's/^/DOS: /'
stop system
END
cat "$scratch/found"
expect 'the UUID of both disks' 'disk 00000000-0000-0000-0000-000000000000' "$(grep '^disk' "$scratch/found")"
expect 'two disks' 'in one second: the same UUIDs' "$(grep '^in one' "$scratch/found")"
expect 'the same disk' 'started again: 0 of 1 partitions have the UUID of before' "$(grep '^started' "$scratch/found")"
expect 'a DOS table' 'DOS: disk 0x00000000' "$(grep '^DOS' "$scratch/found")"
