#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# qemu-nbd 7.2 keeps the tables of a qcow2 image in memory until a flush. If it is killed, each write that it has
# acknowledged and that took new clusters reads as zeroes afterwards, though its data is in the file; qemu-img check finds
# no error. A client that connects again, as a block device does, goes on over the holes. The same writes to a raw, vdi or
# vhdx image are all there, and to a qcow2 image with --cache=writethrough.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root bookworm qemu-utils=1:7.2+dfsg-7+deb12u18+b3 python3-libnbd=1.14.2-1
in_root >"$scratch/found" <<'END'
cd /tmp
cat >write.py <<'PY'
import sys
import nbd

client = nbd.NBD()
client.connect_unix("/tmp/sock")
if sys.argv[1] == "write":
    for number in range(64):  # each in a cluster of its own, and acknowledged before the next one
        client.pwrite(bytes([number + 1]) * 65536, number << 17)
else:
    lost = [number for number in range(64) if client.pread(65536, number << 17) != bytes([number + 1]) * 65536]
    print(f"{sys.argv[2]}: {len(lost)} of 64 writes are lost")
PY
serve() { # FORMAT ARGUMENT...
    format=$1
    shift
    rm -f sock
    qemu-nbd --persistent --shared=0 --format="$format" --socket=/tmp/sock "$@" image 2>/dev/null &
    server=$!
    until [ -S sock ] && python3 -c 'import nbd; nbd.NBD().connect_unix("/tmp/sock")' 2>/dev/null; do sleep 0.1; done
}
for how in "qcow2 writeback" "qcow2 writethrough" "raw writeback" "vdi writeback" "vhdx writeback"; do
    format=${how% *}
    rm -f image
    qemu-img create -q -f "$format" image 16M
    serve "$format" --cache="${how#* }"
    python3 write.py write
    kill -9 $server
    wait $server || :
    [ "$format" != qcow2 ] || qemu-img check -f qcow2 image | grep 'No errors' || :
    serve "$format"
    python3 write.py read "$how"
    kill $server
    wait $server || :
done
END
cat "$scratch/found"
expect 'the check of the image' 2 "$(grep -c 'No errors were found' "$scratch/found")"
expect 'qcow2 after a kill' 'qcow2 writeback: 64 of 64 writes are lost' "$(grep 'qcow2 writeback' "$scratch/found")"
expect 'with writethrough' 'qcow2 writethrough: 0 of 64 writes are lost' "$(grep 'writethrough:' "$scratch/found")"
for format in raw vdi vhdx; do
    expect "$format after a kill" "$format writeback: 0 of 64 writes are lost" "$(grep "^$format" "$scratch/found")"
done
