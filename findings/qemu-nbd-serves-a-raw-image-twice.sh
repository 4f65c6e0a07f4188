#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Two qemu-nbd 7.2 serve one raw image at the same time, both for writing: QEMU's lock of an image, which keeps a second
# one away from a qcow2 image, lets it pass. Both writes arrive in the file; two file systems that are mounted of it would
# destroy it.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root bookworm qemu-utils=1:7.2+dfsg-7+deb12u18+b3
in_root >"$scratch/found" <<'END'
cd /tmp
for format in raw qcow2; do
    qemu-img create -q -f "$format" "image.$format" 1M
    qemu-nbd --persistent --shared=0 --format="$format" --socket="/tmp/first.$format" "image.$format" 2>/dev/null &
    until [ -S "first.$format" ]; do sleep 0.1; done
    sleep 1
    qemu-nbd --persistent --shared=0 --format="$format" --socket="/tmp/second.$format" "image.$format" 2>"said.$format" &
    second=$!
    sleep 3
    if kill -0 $second 2>/dev/null; then
        echo "$format: the second one serves"
    else
        echo "$format: $(grep -o 'Failed to get .* lock' "said.$format")"
    fi
done
qemu-io -f raw -c 'write -P 0x11 0 512' 'nbd+unix:///?socket=/tmp/first.raw' >/dev/null
qemu-io -f raw -c 'write -P 0x22 512 512' 'nbd+unix:///?socket=/tmp/second.raw' >/dev/null
echo "in the file: $(od -An -tx1 -j 511 -N 2 image.raw)"
END
cat "$scratch/found"
expect 'a raw image' 'raw: the second one serves' "$(grep '^raw' "$scratch/found")"
expect 'a qcow2 image' 'qcow2: Failed to get "write" lock' "$(grep '^qcow2' "$scratch/found")"
expect 'both writes' 'in the file:  11 22' "$(grep '^in the file' "$scratch/found")"
