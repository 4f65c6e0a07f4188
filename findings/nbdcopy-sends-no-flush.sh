#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbdcopy of libnbd 1.22.2 ends with exit status 0 without a FLUSH, unless it is told --flush: the copy may be in the server's
# cache only. With nbdkit's filter "cache" the whole copy is lost: a server that is stopped with SIGTERM afterwards, when
# its client has left, leaves zeroes in its file. qemu-img convert and dd flush by themselves, and with them the same
# file has the data. libnbd 1.14.2 and 1.24.4 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbdkit=1.42.3-1 libnbd-bin=1.22.2-1+b1 qemu-utils=1:10.0.13+ds-0+deb13u1
in_root >"$scratch/found" <<'END'
cd /tmp
uri='nbd+unix:///?socket=/tmp/socket'
head -c 1M /dev/urandom >source
copy() { # WHAT COMMAND...
    what=$1
    shift
    rm -f disk socket log
    truncate -s 1M disk
    nbdkit --unix /tmp/socket --pidfile /tmp/pid --filter=log --filter=cache file disk logfile=/tmp/log
    "$@" >/dev/null && result=0 || result=$?
    kill "$(cat pid)"
    while kill -0 "$(cat pid)" 2>/dev/null; do sleep 0.1; done
    grep -q ' Flush .*\.\.\.$' log && flushed=flushed || flushed='not flushed'
    cmp -s source disk && holds='the copy' || holds=other
    cmp -s -n 1048576 disk /dev/zero && holds=zeroes
    echo "$what: exit $result, $flushed, the file has $holds"
}
copy nbdcopy nbdcopy source "$uri"
copy 'nbdcopy --flush' nbdcopy --flush source "$uri"
copy 'qemu-img convert' qemu-img convert -n -f raw -O raw source "$uri"
copy 'qemu-img dd' qemu-img dd -f raw -O raw bs=1M if=source of="$uri"
END
cat "$scratch/found"
expect nbdcopy 'nbdcopy: exit 0, not flushed, the file has zeroes' "$(grep '^nbdcopy:' "$scratch/found")"
for what in 'nbdcopy --flush' 'qemu-img convert' 'qemu-img dd'; do
    expect "$what" "$what: exit 0, flushed, the file has the copy" "$(grep "^$what:" "$scratch/found")"
done
