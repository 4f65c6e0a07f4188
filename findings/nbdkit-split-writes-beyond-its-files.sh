#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbdkit's split plugin, which joins files to one disk, takes a place of the disk for a place in the file when it writes:
# in 1.42.3 a write to the second file lands as far behind its right place as the first file is long. The write succeeds,
# reads show the old data, and the file grows, so the next client gets a larger disk. Reads are right, and so are writes
# to the first file: a file system seems to be good until it uses the rest of the disk. 1.32.5 and
# 1.48.1 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbdkit=1.42.3-1 libnbd-bin=1.22.2-1+b1 python3-libnbd=1.22.2-1+b1
in_root >"$scratch/found" <<'END'
cd /tmp
truncate -s 1M first second
cat >write.py <<'PY'
import nbd

client = nbd.NBD()
client.connect_unix("/tmp/socket")
print("size", client.get_size())
client.pwrite(b"new!", 1 << 20)
client.flush() if client.can_flush() else None
print("read back", bytes(client.pread(4, 1 << 20)))
PY
nbdkit --unix /tmp/socket split first second
python3 write.py
echo "first $(stat -c %s first), second $(stat -c %s second)"
echo "in the second file at 1048576: $(tail -c +1048577 second)"
nbdinfo --size 'nbd+unix:///?socket=/tmp/socket' | sed 's/^/next client: /'
END
cat "$scratch/found"
expect 'size of the disk' 'size 2097152' "$(grep size "$scratch/found")"
expect 'the second half, after a write there' "read back b'\\x00\\x00\\x00\\x00'" "$(grep 'read back' "$scratch/found")"
expect 'files of 1 MiB each' 'first 1048576, second 1048580' "$(grep '^first' "$scratch/found")"
expect 'the data' 'in the second file at 1048576: new!' "$(grep 'in the second' "$scratch/found")"
expect 'size of the disk then' 'next client: 2097156' "$(grep next "$scratch/found")"
