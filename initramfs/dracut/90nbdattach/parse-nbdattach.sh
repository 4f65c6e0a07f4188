#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Sourced with the other hooks of cmdline: is the root on NBD, and ours to attach? Then the network is needed for it, and
# the program that configures it calls /sbin/nbdattachroot.
# shellcheck disable=SC2034 # what dracut reads

case "${root:-$(getarg root=)}" in
nbd:* | nbds:*)
    # Where it is mounted from is said when it is attached.
    root=nbdattach
    wanted=yes
    ;;
*) wanted=$(getarg nbdroot=)$(getarg nbddev=) ;;
esac

if [ -n "$wanted" ]; then
    netroot=nbdattach
    rootok=1
    # Also where the root needs no more than nbdroot= to be found.
    [ -n "$root" ] || root=nbdattach
    # shellcheck disable=SC2154 # of dracut
    echo '[ -s /tmp/nbdattach.root ]' >"$hookdir/initqueue/finished/nbdattach.sh"
    # The others configure an interface by DHCP when nothing is said.
    [ ! -e /usr/lib/systemd/systemd-networkd ] || getarg ip= >/dev/null ||
        warn 'nbdattach: no ip= on the command line, so systemd-networkd configures no network for the root'
fi
unset wanted
