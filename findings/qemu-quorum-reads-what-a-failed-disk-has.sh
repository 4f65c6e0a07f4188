#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# QEMU's driver quorum with two disks and vote-threshold=1 mirrors them. With 10.0.13, if one disk fails a write and a flush,
# both succeed, qemu-nbd logs nothing, and the disk stays in use. A read finds two versions with one vote each, and takes
# that of the last disk in the list: if it is the one that failed, and can be read again, reads get the old data
# instead of those that were flushed. If the first disk failed, reads are right. 7.2 and 11.1.3 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie qemu-utils=1:10.0.13+ds-0+deb13u1 nbdkit=1.42.3-1 python3-libnbd=1.22.2-1+b1
in_root >"$scratch/found" <<'END'
cd /tmp
cat >plugin <<'SH'
case $1 in
get_size) echo 1M ;;
can_write | can_flush) ;;
pread) dd if=/tmp/failing skip="$4" count="$3" iflag=count_bytes,skip_bytes status=none ;;
pwrite | flush)
    [ ! -e /tmp/fail ] || {
        echo 'EIO the disk is gone' >&2
        exit 1
    }
    [ "$1" = flush ] || dd of=/tmp/failing seek="$4" conv=notrunc oflag=seek_bytes status=none
    ;;
*) exit 2 ;;
esac
SH
chmod 755 plugin
cat >client.py <<'PY'
import os
import nbd

client = nbd.NBD()
client.connect_unix("/tmp/mirror")


def attempt(what, act):
    try:
        result = act()
    except nbd.Error as error:
        result = error.errno
    print(f"{what}:", result or "succeeds")


client.pwrite(b"old!" * 1024, 0)
client.flush()
open("fail", "w").close()
attempt("write", lambda: client.pwrite(b"new!" * 1024, 0))
attempt("flush", client.flush)
os.unlink("fail")
attempt("read", lambda: bytes(client.pread(4, 0)).decode())
PY
failing=driver=raw,CHILD.file.driver=nbd,CHILD.file.server.type=unix,CHILD.file.server.path=/tmp/disk
good=driver=raw,CHILD.file.driver=file,CHILD.file.filename=/tmp/good
child() { echo "children.$1.$(echo "$2" | sed "s/CHILD/children.$1/g")"; }
for order in "$failing $good" "$good $failing"; do
    rm -f disk
    truncate -s 0 failing good
    truncate -s 1M failing good
    nbdkit --unix /tmp/disk --pidfile /tmp/pid1 sh plugin
    qemu-nbd --persistent --socket=/tmp/mirror --fork --pid-file=/tmp/pid2 --image-opts \
        "driver=quorum,vote-threshold=1,$(child 0 "${order% *}"),$(child 1 "${order#* }")" 2>>warnings
    [ "${order% *}" = "$good" ] && which=last || which=first
    python3 client.py | sed "s/^/$which fails: /"
    echo "$which fails: that disk has $(head -c 4 failing), the other $(head -c 4 good)"
    kill "$(cat pid2)"
    while kill -0 "$(cat pid2)" 2>/dev/null; do sleep 0.1; done
    kill "$(cat pid1)"
    while kill -0 "$(cat pid1)" 2>/dev/null; do sleep 0.1; done
done
echo "lines of qemu-nbd: $(wc -l <warnings)"
END
cat "$scratch/found"
for which in first last; do
    expect 'a write' "$which fails: write: succeeds" "$(grep "^$which fails: write" "$scratch/found")"
    expect 'a flush' "$which fails: flush: succeeds" "$(grep "^$which fails: flush" "$scratch/found")"
    expect 'on the disks' "$which fails: that disk has old!, the other new!" "$(grep "^$which fails: that" "$scratch/found")"
done
expect 'a read of the mirror' 'first fails: read: new!' "$(grep '^first fails: read' "$scratch/found")"
expect 'a read of the mirror' 'last fails: read: old!' "$(grep '^last fails: read' "$scratch/found")"
expect 'what the user learns' 'lines of qemu-nbd: 0' "$(grep '^lines' "$scratch/found")"
