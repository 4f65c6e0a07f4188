#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# A Parallels image whose qemu-nbd 7.2 was killed, even after a flush and with no write since, is not opened for writing
# any more: the header says "in use" until it is closed. Of the formats that qemu-img makes no other one does so. A server
# that is started again after a crash needs qemu-img check -r first; then all data is there.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root bookworm qemu-utils=1:7.2+dfsg-7+deb12u18+b3
in_root >"$scratch/found" <<'END'
cd /tmp
serve() {
    rm -f sock
    qemu-nbd --persistent --shared=0 --format=parallels --socket=/tmp/sock image 2>said &
    server=$!
    sleep 1
}
io() {
    qemu-io -f raw -c "$1" 'nbd+unix:///?socket=/tmp/sock' 2>&1
}
qemu-img create -q -f parallels image 16M
serve
io 'write -P 0x11 0 1M' >/dev/null # qemu-io flushes at its end
kill -9 $server
wait $server || :
serve
kill -0 $server 2>/dev/null && echo 'after the kill: it serves' || echo "after the kill: $(grep -o 'Image was not closed.*' said)"
qemu-img check -q -r all -f parallels image >/dev/null 2>&1 || :
serve
io 'read -P 0x11 0 1M' | grep -q 'verification failed' && echo 'after the repair: other data' || echo 'after the repair: the data is there'
END
cat "$scratch/found"
expect 'the server after a kill' 'after the kill: Image was not closed correctly; cannot be opened read/write' "$(grep 'the kill' "$scratch/found")"
expect 'and after a repair' 'after the repair: the data is there' "$(grep 'the repair' "$scratch/found")"
