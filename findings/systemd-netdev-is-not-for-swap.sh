#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# systemd 257: with "_netdev" in fstab, a file system is required by remote-fs.target, and its device is ordered after the
# network. In the line of a swap device "_netdev" has neither effect: swap.target requires it, which is finished before
# sysinit.target, and so before any service that needs the network or attaches the device. The boot then waits for the
# device until it times out. "nofail" helps: nothing requires the swap. 252 does the same; 262 treats swap as it does
# file systems, so the same line works after an upgrade.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie user-mode-linux=6.12um1+b22 systemd=257.13-1~deb13u1 kmod iproute2 mount
in_guest >"$scratch/found" <<'END'
cd /run
echo "systemd $(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')"
echo "sysinit.target: after $(sed -n 's/^After=//p' /usr/lib/systemd/system/sysinit.target | grep -o 'swap.target')"
cat >fstab <<'FSTAB'
/dev/nbd0 none swap _netdev 0 0
/dev/nbd1 /srv ext4 _netdev 0 0
/dev/nbd2 none swap _netdev,nofail 0 0
FSTAB
mkdir units early late
SYSTEMD_FSTAB=/run/fstab /usr/lib/systemd/system-generators/systemd-fstab-generator units early late
for unit in dev-nbd0.swap srv.mount dev-nbd2.swap; do
    echo "$unit: required by$(cd units && for folder in *.requires; do [ ! -e "$folder/$unit" ] || echo " ${folder%.requires}"; done)"
done
for device in nbd0 nbd1; do
    echo "$device: after $(cat units/dev-$device.device.d/* 2>/dev/null | sed -n 's/^After=//p')"
done
END
cat "$scratch/found"
expect version 'systemd 257' "$(head -n 1 "$scratch/found")"
expect 'the order' 'sysinit.target: after swap.target' "$(grep '^sysinit' "$scratch/found")"
expect 'a file system with _netdev' 'srv.mount: required by remote-fs.target' "$(grep '^srv' "$scratch/found")"
expect 'its device' 'nbd1: after network-online.target network.target' "$(grep '^nbd1' "$scratch/found")"
expect 'swap with _netdev' 'dev-nbd0.swap: required by swap.target' "$(grep '^dev-nbd0' "$scratch/found")"
expect 'its device' 'nbd0: after ' "$(grep '^nbd0' "$scratch/found")"
expect 'swap with nofail' 'dev-nbd2.swap: required by' "$(grep '^dev-nbd2' "$scratch/found")"
