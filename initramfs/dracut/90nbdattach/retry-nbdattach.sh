#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Sourced again and again while the initramfs waits for the root, when it has nothing else to do.
# shellcheck disable=SC2154 # netroot, of dracut

nbdattach_may_try() {
    if [ -e /run/systemd/netif/state ]; then
        # systemd-networkd brings the network up, and calls no program. An address for this link alone is not enough.
        sed -n 's/^DNS=//p' /run/systemd/netif/state | tr ' ' '\n' | sed -n 's/^./nameserver &/p' >/etc/resolv.conf
        sed -n 's/^DOMAINS=./search &/p' /run/systemd/netif/state >>/etc/resolv.conf
        grep -q '^OPER_STATE=routable$' /run/systemd/netif/state
    else
        [ -s /tmp/nbdattach.since ]
    fi
}

if [ "$netroot" = nbdattach ] && [ ! -s /tmp/nbdattach.root ]; then
    if nbdattach_may_try; then
        /sbin/nbdattachroot ''
    fi
    if [ -e /tmp/nbdattach.failed ]; then
        # A shell, or what rd.emergency= says; after the shell from the beginning.
        rm -f /tmp/nbdattach.failed /tmp/nbdattach.since
        emergency_shell 'nbdattach: the root file system cannot be attached'
    fi
fi
