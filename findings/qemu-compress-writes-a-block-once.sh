#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# QEMU's filter "compress" in front of a qcow2 image makes all writes compressed ones. With 10.0.13, qemu-nbd offers the
# disk read-write, and each cluster of 64 KiB can be written once: a second write to it fails with EIO if its data can be
# compressed, and succeeds if it cannot. So a test with random data passes, a file system fails as soon as it changes a
# block, and a block that was discarded can be written again. 7.2 and 11.1.3 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie qemu-utils=1:10.0.13+ds-0+deb13u1 python3-libnbd=1.22.2-1+b1
in_root >"$scratch/found" <<'END'
cd /tmp
qemu-img create -q -f qcow2 image 16M
qemu-nbd --persistent --discard=unmap --socket=/tmp/socket --fork --pid-file=/tmp/pid \
    --image-opts driver=compress,discard=unmap,file.driver=qcow2,file.discard=unmap,file.file.driver=file,file.file.filename=image
cat >write.py <<'PY'
import os
import nbd

client = nbd.NBD()
client.connect_unix("/tmp/socket")
print("read-only" if client.is_read_only() else "read-write")


def write(what, data):
    try:
        client.pwrite(data, 0)
    except nbd.Error as error:
        print(f"{what}: {error.errno}")
    else:
        print(f"{what}: succeeds")


write("text", b"text" * 16384)
write("other text", b"more" * 16384)
write("random", os.urandom(65536))
write("other random", os.urandom(65536))
write("text at last", b"text" * 16384)
client.trim(65536, 0)
write("text after a TRIM", b"text" * 16384)
PY
python3 write.py
kill "$(cat pid)"
END
cat "$scratch/found"
expect 'the export' read-write "$(head -n 1 "$scratch/found")"
expect 'a first write' 'text: succeeds' "$(grep '^text:' "$scratch/found")"
expect 'a second write' 'other text: EIO' "$(grep '^other text' "$scratch/found")"
expect 'a write of other data' 'random: succeeds' "$(grep '^random' "$scratch/found")"
expect 'and again' 'other random: succeeds' "$(grep '^other random' "$scratch/found")"
expect 'as at first' 'text at last: EIO' "$(grep '^text at' "$scratch/found")"
expect 'as at first' 'text after a TRIM: succeeds' "$(grep '^text after' "$scratch/found")"
