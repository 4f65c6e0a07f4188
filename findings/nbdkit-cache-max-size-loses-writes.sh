#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbdkit's filter "cache" with cache-max-size=SIZE makes room in its cache by forgetting blocks, also those that are
# nowhere else yet. In 1.42.3, of 80 blocks of 64 KiB that a client writes through a cache of 1 MiB, more than half read
# as zeroes at once, and never reach the disk below. Each write and the flush succeed. With cache=writethrough, or without
# cache-max-size, all is there. 1.32.5 and 1.48.1 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbdkit=1.42.3-1 python3-libnbd=1.22.2-1+b1
in_root >"$scratch/found" <<'END'
mount -t tmpfs tmpfs /tmp
export TMPDIR=/tmp # of the cache
cd /tmp
cat >write.py <<'PY'
import sys
import nbd

client = nbd.NBD()
client.connect_unix("/tmp/socket")


def count(read):
    wrong = sum(read(number << 16, 1 << 16) != bytes([number + 1]) * 65536 for number in range(80))
    return "none" if wrong == 0 else "more than half" if wrong > 40 else "some"


def below(place, length):
    with open("/tmp/disk", "rb") as disk:
        disk.seek(place)
        return disk.read(length)


for number in range(80):
    client.pwrite(bytes([number + 1]) * 65536, number << 16)
print(f"{sys.argv[1]}: wrong before the flush: {count(lambda place, length: client.pread(length, place))}")
client.flush()
print(f"{sys.argv[1]}: wrong on the disk after the flush: {count(below)}")
PY
for arguments in cache-max-size=1M 'cache-max-size=1M cache=writethrough' cache-max-size=64M; do
    rm -f disk socket
    truncate -s 5M disk
    nbdkit --unix /tmp/socket --pidfile /tmp/pid --filter=cache file disk $arguments
    python3 write.py "$arguments"
    kill "$(cat pid)"
done
END
cat "$scratch/found"
small='cache-max-size=1M'
expect 'what reads show' "$small: wrong before the flush: more than half" "$(grep "^$small: .*before" "$scratch/found")"
expect 'the disk' "$small: wrong on the disk after the flush: more than half" "$(grep "^$small: .*after" "$scratch/found")"
for good in "$small cache=writethrough" cache-max-size=64M; do
    expect 'what reads show' "$good: wrong before the flush: none" "$(grep "^$good: .*before" "$scratch/found")"
    expect 'the disk' "$good: wrong on the disk after the flush: none" "$(grep "^$good: .*after" "$scratch/found")"
done
