#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Called by dracut as `nbdattachroot INTERFACE NETROOT NEWROOT` when an interface is up, and by retry-nbdattach.sh as long as
# it has not succeeded: tries for some seconds to attach the root file system.
# Leaves /tmp/nbdattach.root when that is done, /tmp/nbdattach.failed when it cannot be.

# shellcheck disable=SC1091 # of the initramfs
command -v getarg >/dev/null || . /lib/dracut-lib.sh

[ ! -s /tmp/nbdattach.root ] && [ ! -e /tmp/nbdattach.failed ] || exit 0

# What DHCP said, under the names that initramfs-tools has for it.
# shellcheck disable=SC1090
[ ! -e "/tmp/dhclient.$1.dhcpopts" ] || . "/tmp/dhclient.$1.dhcpopts"
export ROOTSERVER="${new_next_server-}" ROOTPATH="${new_root_path-}"

# dracut has words of other files, too.
NBDATTACH_CMDLINE=$(getcmdline)
[ -s /tmp/nbdattach.since ] || cut -d ' ' -f 1 /proc/uptime >/tmp/nbdattach.since
NBDATTACH_SINCE=$(cat /tmp/nbdattach.since)
export NBDATTACH_CMDLINE NBDATTACH_SINCE

modprobe nbd
modprobe -q tls
said=$(/usr/bin/python3 -I -S -c "import sys; sys.path.append('/usr/lib/nbdattach'); from nbdattach.boot import root; root.main()")
code=$?
if [ "$code" = 75 ]; then
    exit 1 # not yet
elif [ "$code" != 0 ] || [ -z "$said" ]; then
    : >/tmp/nbdattach.failed
    exit 1
fi

# ROOT, ROOTFSTYPE, ROOTFLAGS and NBDATTACH_DEVICE, as far as there is something to say.
eval "$said"
options=$(getarg rw >/dev/null && echo rw || echo ro)
for flags in "$(getarg rootflags=)" "${ROOTFLAGS#-o }"; do
    options=$options${flags:+,$flags}
done

setting() { # NAME VALUE: of a unit, where % begins something else
    [ -z "$2" ] || printf '%s=%s\n' "$1" "$2" | sed 's/%/%%/g'
}

if [ -d /run/systemd/system ]; then
    # Whatever root= says, systemd has made a unit of it that mounts just that.
    if [ -n "${ROOT-}" ]; then
        mkdir -p /run/systemd/system/sysroot.mount.d
        {
            echo '[Mount]'
            setting What "$ROOT"
            setting Options "$options"
            setting Type "${ROOTFSTYPE-}"
        } >/run/systemd/system/sysroot.mount.d/nbdattach.conf
        systemctl daemon-reload
    fi
    # The monitor has to be there before the server goes away for the first time, so it is among the first to start.
    mkdir -p /run/systemd/system/sysinit.target.wants
    ln -sf /lib/systemd/system/nbdattach-monitor.service /run/systemd/system/sysinit.target.wants/
fi

# For the hook of mount; that the second one is there ends the wait for the root.
printf '%s\n' "$options" >/tmp/nbdattach.options
printf '%s\n' "$said" >/tmp/nbdattach.root
