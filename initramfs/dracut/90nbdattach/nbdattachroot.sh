#!/bin/sh
# Called by dracut as `nbdattachroot INTERFACE NETROOT NEWROOT` when an interface is up: attaches the root file system.

# shellcheck disable=SC1091 # of the initramfs
command -v getarg >/dev/null || . /lib/dracut-lib.sh

# Each interface that comes up calls this.
[ ! -s /tmp/nbdattach.root ] || exit 0

# What DHCP said, under the names that initramfs-tools has for it.
# shellcheck disable=SC1090
[ ! -e "/tmp/dhclient.$1.dhcpopts" ] || . "/tmp/dhclient.$1.dhcpopts"
export ROOTSERVER="${new_next_server-}" ROOTPATH="${new_root_path-}"

modprobe nbd
modprobe -q tls
said=$(/usr/bin/python3 -I -S -c "import sys; sys.path.append('/usr/lib/nbdattach'); from nbdattach import root; root.main()") ||
    die 'nbdattach: the root file system cannot be attached'

# ROOT, ROOTFSTYPE, ROOTFLAGS and NBDATTACH_DEVICE, as far as there is something to say.
eval "$said"
options=$(getarg rw >/dev/null && echo rw || echo ro)
for flags in "$(getarg rootflags=)" "${ROOTFLAGS#-o }"; do
    options=$options${flags:+,$flags}
done

if [ -d /run/systemd/system ]; then
    # Whatever root= says, systemd has made a unit of it that mounts just that.
    if [ -n "${ROOT-}" ]; then
        mkdir -p /run/systemd/system/sysroot.mount.d
        {
            echo '[Mount]'
            echo "What=$ROOT"
            echo "Options=$options"
            [ -z "${ROOTFSTYPE-}" ] || echo "Type=$ROOTFSTYPE"
        } >/run/systemd/system/sysroot.mount.d/nbdattach.conf
        systemctl daemon-reload
    fi
    # The monitor has to be there before the server goes away for the first time, so it is among the first to start.
    mkdir -p /run/systemd/system/sysinit.target.wants
    ln -sf /lib/systemd/system/nbdattach-monitor.service /run/systemd/system/sysinit.target.wants/
fi

# For the hook of mount; that it is there ends the wait for the root.
printf '%s\nOPTIONS=%s\n' "$said" "'$options'" >/tmp/nbdattach.root
