#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbdkit's filter "tar" serves a file inside of a tar archive. If "tar --sparse" has stored a disk image without its
# holes, nbdkit 1.42.3 serves as many bytes as the image had, from its place in the archive on: the data without the holes,
# and then the files behind it. A client that writes to its own disk overwrites the next file of the archive. Nothing
# fails. 1.32.5 and 1.48.1 do the same.
# Of a file that is in the archive twice, as after "tar --append", nbdkit serves the first; tar extracts the last.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbdkit=1.42.3-1 libnbd-bin=1.22.2-1+b1 python3-libnbd=1.22.2-1+b1 tar=1.35+dfsg-3.1
in_root >"$scratch/found" <<'END'
cd /tmp
uri='nbd+unix:///?socket=/tmp/socket'
serve() { # ARCHIVE
    rm -f socket
    nbdkit --unix /tmp/socket --pidfile /tmp/pid --filter=tar file "$1" tar-entry=disk
}
compare() { cmp -s "$1" "$2" && echo 'the same' || echo different; }
cat >write.py <<'PY'
import nbd

client = nbd.NBD()
client.connect_unix("/tmp/socket")
client.pwrite(b"w" * 65536, 640 << 10)
client.flush()
PY
truncate -s 1M disk
dd if=/dev/urandom of=disk bs=64K seek=8 count=1 conv=notrunc 2>/dev/null
head -c 2M /dev/urandom >other
for way in plain sparse; do
    [ $way = plain ] && option= || option=--sparse
    tar --create $option --file $way.tar disk other
    serve $way.tar
    nbdcopy "$uri" copy
    echo "$way: $(stat -c %s copy) bytes, $(compare disk copy)"
    python3 write.py
    kill "$(cat pid)"
    mkdir $way
    tar --extract --file $way.tar --directory $way
    echo "$way: the other file after a write to the disk: $(compare other $way/other)"
done
printf '%-512s' old >disk
tar --create --file twice.tar disk
printf '%-512s' new >disk
tar --append --file twice.tar disk
serve twice.tar
echo "twice: nbdkit has the $(nbdcopy "$uri" - | head -c 3)"
kill "$(cat pid)"
tar --extract --file twice.tar
echo "twice: tar has the $(head -c 3 disk)"
END
cat "$scratch/found"
expect 'the disk in a plain archive' 'plain: 1048576 bytes, the same' "$(grep 'plain.*bytes' "$scratch/found")"
expect 'and the file behind it' 'plain: the other file after a write to the disk: the same' "$(grep 'plain.*other' "$scratch/found")"
expect 'the disk as a sparse file' 'sparse: 1048576 bytes, different' "$(grep 'sparse.*bytes' "$scratch/found")"
expect 'and the file behind it' 'sparse: the other file after a write to the disk: different' "$(grep 'sparse.*other' "$scratch/found")"
expect 'a file that is there twice' 'twice: nbdkit has the old' "$(grep 'nbdkit has' "$scratch/found")"
expect 'the same by tar' 'twice: tar has the new' "$(grep 'tar has' "$scratch/found")"
