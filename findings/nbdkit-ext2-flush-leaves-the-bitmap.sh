#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbdkit's filter "ext2" serves a file of a file system as a disk. In 1.42.3 a FLUSH writes the data and the file's list
# of blocks, but not the bitmap of used blocks, which follows when the client leaves. If nbdkit is killed after a FLUSH,
# the file's new blocks are free in the bitmap, and the file system is still "clean", so that mount accepts it and the
# next file gets the same blocks. Only e2fsck -f sees it. 1.32.5 and 1.48.1 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbdkit=1.42.3-1 python3-libnbd=1.22.2-1+b1 e2fsprogs=1.47.2-3+b12
in_root >"$scratch/found" <<'END'
cd /tmp
cat >client.py <<'PY'
import os, signal
import nbd

client = nbd.NBD()
client.connect_unix("/tmp/socket")
client.pwrite(b"disk" * 16384, 0)
client.flush()
print("flush succeeds")
os.kill(int(open("/tmp/pid").read()), signal.SIGKILL)
PY
truncate -s 16M image
truncate -s 1M sparse
yes other | head -c 65536 >file
mke2fs -q -F image
debugfs -w -R 'write sparse disk' image >/dev/null 2>&1
nbdkit --unix /tmp/socket --pidfile /tmp/pid --filter=ext2 file image ext2file=/disk
python3 client.py
echo "after the kill: $(debugfs -R 'cat disk' image 2>/dev/null | head -c 4)"
e2fsck -p image >said 2>&1 && echo "e2fsck -p: $(grep -o clean said)"
e2fsck -fn image 2>&1 | grep -q 'Block bitmap differences' && echo 'e2fsck -f: the bitmap is wrong'
debugfs -w -R 'write file other' image >/dev/null 2>&1
echo "after a new file: $(debugfs -R 'cat disk' image 2>/dev/null | head -c 5)"
END
cat "$scratch/found"
expect 'a flush' 'flush succeeds' "$(grep ^flush "$scratch/found")"
expect 'the data' 'after the kill: disk' "$(grep 'the kill' "$scratch/found")"
expect 'the usual check' 'e2fsck -p: clean' "$(grep 'e2fsck -p' "$scratch/found")"
expect 'the full check' 'e2fsck -f: the bitmap is wrong' "$(grep 'e2fsck -f' "$scratch/found")"
expect 'the data when another file is written' 'after a new file: other' "$(grep 'new file' "$scratch/found")"
