#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbdkit's file plugin 1.32 opens its file by name for each connection. If another file has got the name meanwhile (mv), a
# client that connects again reads and writes that one, while earlier connections keep the first. A path through
# /proc/self/fd does not help: its target is resolved to the name when nbdkit starts.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root bookworm nbdkit=1.32.5-1 libnbd-bin=1.14.2-1
in_root >"$scratch/found" <<'END'
cd /tmp
for name in first second; do head -c 4096 /dev/zero | tr '\0' "${name%"${name#?}"}" >$name; done
for how in name descriptor; do
    cp first disk
    exec 7<>disk
    path=disk
    [ $how = name ] || path=/proc/self/fd/7
    nbdkit --unix /tmp/$how --pidfile /tmp/pid file $path
    before=$(nbdcopy "nbd+unix:///?socket=/tmp/$how" - | head -c 1)
    cp second copy
    mv copy disk
    after=$(nbdcopy "nbd+unix:///?socket=/tmp/$how" - | head -c 1)
    echo "$how: $before, then $after"
    kill "$(cat pid)"
    exec 7>&-
done
END
cat "$scratch/found"
expect 'by its name' 'name: f, then s' "$(grep '^name' "$scratch/found")"
expect 'by a descriptor' 'descriptor: f, then s' "$(grep '^descriptor' "$scratch/found")"
