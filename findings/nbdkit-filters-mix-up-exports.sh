#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbdkit's file plugin with "dir=" serves each file of a folder as an export. With 1.42.3, filters that keep data keep it by
# its place only, for all exports together. With cow and cache a write to one export is read in the others too; cache then
# writes it to the file of the client that flushes next, and not to its own. With cache-on-read or cow-on-read the
# first export that was read is read in the others. cacheextents answers BLOCK_STATUS for one export with the holes of
# another, so nbdcopy copies zeroes for its data, with exit status 0. 1.32.5 does the same. 1.48.1 has cow right.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbdkit=1.42.3-1 libnbd-bin=1.22.2-1+b1 python3-libnbd=1.22.2-1+b1
in_root >"$scratch/found" <<'END'
cd /tmp
cat >client.py <<'PY'
import sys
import nbd


def open_export(name):
    client = nbd.NBD()
    client.set_export_name(name)
    client.connect_unix("/tmp/socket")
    return client


if sys.argv[1:] == ["write"]:
    client = open_export("first")
    client.pwrite(b"new!" * 16384, 0)
    client.shutdown()
    other = open_export("second")
    print("read of second", bytes(other.pread(4, 0)).decode())
    other.flush()
    other.shutdown()
else:
    for name in "first", "second":
        client = open_export(name)
        print("read of", name, bytes(client.pread(4, 0)).decode().replace("\0", "0"))
        client.shutdown()
PY
serve() { # WHAT ARGUMENT...: first has zeroes only, in a hole, and second has data
    what=$1
    shift
    rm -rf socket folder
    mkdir folder
    truncate -s 1M folder/first
    head -c 1M /dev/zero | tr '\0' 2 >folder/second
    nbdkit --unix /tmp/socket --pidfile /tmp/pid "$@" file dir=folder $options
}
said() { sed "s/^/$what: /"; }
stop() {
    kill "$(cat pid)"
    while kill -0 "$(cat pid)" 2>/dev/null; do sleep 0.1; done
    echo "$what: file of first $(head -c 4 folder/first | tr '\0' 0), of second $(head -c 4 folder/second)"
}
options=
for filter in cow cache; do
    serve "$filter" "--filter=$filter"
    python3 client.py write | said
    stop
done
options=cache-on-read=true serve 'cache, cache-on-read' --filter=cache
python3 client.py | said
stop
options=cow-on-read=true serve 'cow, cow-on-read' --filter=cow
python3 client.py | said
stop
options=
for filter in cacheextents nofilter; do
    serve "$filter" "--filter=$filter"
    for name in first second; do
        uri="nbd+unix:///$name?socket=/tmp/socket"
        echo "$what: extents of $name $(nbdinfo --map "$uri" | awk '{ print $4 }')"
        nbdcopy "$uri" copy && echo "$what: copy of $name $(head -c 4 copy | tr '\0' 0)"
    done
    stop
done
END
cat "$scratch/found"
said() { grep "^$1" "$scratch/found"; }
expect 'after a write to first' 'cow: read of second new!' "$(said 'cow: read')"
expect 'after a write to first' 'cache: read of second new!' "$(said 'cache: read')"
expect 'and a flush by the client of second' 'cache: file of first 0000, of second new!' "$(said 'cache: file')"
for filter in cache cow; do
    expect 'after a read of first' "$filter, $filter-on-read: read of second 0000" "$(said "$filter, $filter-on-read: read of second")"
    expect 'though the files are' "$filter, $filter-on-read: file of first 0000, of second 2222" "$(said "$filter, $filter-on-read: file")"
done
expect 'after a look at first' 'cacheextents: extents of second hole,zero' "$(said 'cacheextents: extents of second')"
expect 'a copy then' 'cacheextents: copy of second 0000' "$(said 'cacheextents: copy of second')"
expect 'without the filter' 'nofilter: extents of second data' "$(said 'nofilter: extents of second')"
expect 'and' 'nofilter: copy of second 2222' "$(said 'nofilter: copy of second')"
