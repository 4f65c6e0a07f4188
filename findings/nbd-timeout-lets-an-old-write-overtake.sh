#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# With several connections the nbd driver sends a request that is older than its timeout again over another connection,
# and shuts the first one down. TCP goes on to send what it has of that one: if the link was cut and comes back, the first
# copy of a write arrives after the second one, and after a newer write to the same place, which is lost for good. No
# error is told. TCP_USER_TIMEOUT below the driver's timeout makes TCP drop that copy before.
# Tried with user-mode Linux 6.12.113 and nbd-client 3.26.1.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 nbdkit=1.42.3-1 nbd-client=1:3.26.1-6.1 kmod iproute2 procps
in_guest >"$scratch/found" <<'END'
uname -r
ip netns add far
ip link add near type veth peer name far netns far
ip addr add 10.9.0.1/24 dev near
ip link set near up
ip -n far link set far up
ip -n far addr add 10.9.0.2/24 dev far
truncate -s 1M /run/image
ip netns exec far nbdkit --threads=1 --ipaddr 10.9.0.2 --pidfile /run/pid file /run/image
block() { # LETTER
    head -c 4096 /dev/zero | tr '\0' "$1" >"/run/$1"
    dd if="/run/$1" of=/dev/nbd0 bs=4096 count=1 oflag=direct conv=notrunc 2>/dev/null
}
nbd-client -C 2 -t 5 10.9.0.2 /dev/nbd0 >/dev/null 2>&1
until [ "$(cat /sys/block/nbd0/size)" = 2048 ]; do sleep 0.1; done
block A
ip -n far addr del 10.9.0.2/24 dev far
block O & # the old write
until ss -tnH state fin-wait-1 | grep -q 10.9.0.2; do sleep 0.05; done
ip -n far addr add 10.9.0.2/24 dev far
wait $!
block N # a newer one to the same place
echo "after the newer write: $(head -c 1 /run/image)"
until ! ss -tnH state fin-wait-1 | grep -q 10.9.0.2; do sleep 0.1; done
sleep 1
echo "in the end: $(head -c 1 /run/image)"
nbd-client -d /dev/nbd0 >/dev/null 2>&1
END
cat "$scratch/found"
expect kernel 6.12.113 "$(head -n 1 "$scratch/found")"
expect 'newer write' 'after the newer write: N' "$(grep 'after the newer' "$scratch/found")"
expect 'old write' 'in the end: O' "$(grep 'in the end' "$scratch/found")"
