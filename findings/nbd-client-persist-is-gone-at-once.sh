#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# nbd-client 3.26.1 attaches by netlink unless it is told -nonetlink, and takes -persist ("immediately try to reconnect")
# there without a word. But it ends after the attach, so nothing connects again: after a restart of the server the disk
# fails, as it does without the option. /sys/block/nbd0/pid and "nbd-client -c" then tell the number of the process that
# has ended, which may be that of another one by now. With -nonetlink the option works. 3.24 and 3.27.1 do the same.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2
in_guest >"$scratch/found" <<'END'
serve() {
    rm -f /run/sock
    nbdkit --unix /run/sock --pidfile /run/pid memory 1M
}
restarted() { # NAME
    pid=$(nbd-client -c /dev/nbd0)
    if [ -e "/proc/$pid" ]; then echo "$1: process runs"; else echo "$1: process has ended"; fi
    kill -9 "$(cat /run/pid)"
    serve
    sleep 5
    if timeout 10 dd if=/dev/nbd0 of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null; then
        echo "$1: read succeeds"
    else
        echo "$1: read fails"
    fi
    nbd-client -d /dev/nbd0 >/dev/null 2>&1
    until [ "$(cat /sys/block/nbd0/size)" = 0 ]; do sleep 0.1; done
}
serve
nbd-client -unix /run/sock /dev/nbd0 -persist >/dev/null 2>&1 && echo 'netlink: accepted'
restarted netlink
nbd-client -unix /run/sock /dev/nbd0 -nonetlink -persist >/dev/null 2>&1 &
until [ "$(cat /sys/block/nbd0/size)" = 2048 ]; do sleep 0.1; done
restarted ioctl
END
cat "$scratch/found"
expect '-persist by netlink' 'netlink: accepted' "$(grep 'netlink: acc' "$scratch/found")"
expect 'the process that the kernel names' 'netlink: process has ended' "$(grep 'netlink: proc' "$scratch/found")"
expect 'after a restart of the server' 'netlink: read fails' "$(grep 'netlink: read' "$scratch/found")"
expect 'with -nonetlink' 'ioctl: process runs' "$(grep 'ioctl: proc' "$scratch/found")"
expect 'after a restart of the server' 'ioctl: read succeeds' "$(grep 'ioctl: read' "$scratch/found")"
