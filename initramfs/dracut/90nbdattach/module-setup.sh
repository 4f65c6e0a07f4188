#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Module of dracut: copies into an initramfs all that it needs to attach a root file system over NBD.
# Installed as 90nbdattach in /usr/lib/dracut/modules.d; nbdattach-root(7) lists what it reads when the machine boots.

# Most machines that have nbdattach boot from another disk: they do not need this, and it could fail.
check() {
    require_binaries nbdattach modprobe || return 1
    [[ -e /etc/nbdattach/initramfs ]] || grep -qs '"root": true' /run/nbdattach/nbd*.json || return 255
}

depends() {
    echo network
}

install() {
    local command python libraries=/usr/lib/nbdattach listing what name place library start

    # The Python that nbdattach runs with; it may be one of a virtual environment.
    command=$(type -P nbdattach)
    python=$(sed -n '1s/^#! *\([^ ]*\).*/\1/p' "$command")
    if ! listing=$("$python" -I -m nbdattach.boot.initramfs "${initdir:?}" "${kernel:?}"); then
        dfatal "nbdattach: the Python of $command cannot load the modules it needs"
        exit 1
    fi
    nbdattach_modules=()
    while read -r what name place; do
        case $what in
        copy)
            inst "$name" "$place"
            # Of libraries dracut finds only those of files that may be executed, which Python's extensions may not.
            while read -r library; do inst "$library"; done < <(ldd "$name" | grep -o '/[^ ]*')
            ;;
        module) nbdattach_modules+=("$name") ;;
        esac
    done <<<"$listing"
    # If a module is missing, fail now, and not when the machine boots.
    start="import sys; sys.path.append('$libraries'); from nbdattach.boot import root; root.require_all_modules()"
    if ! chroot "$initdir" /usr/bin/python3 -I -S -c "$start"; then
        dfatal 'nbdattach: the copied nbdattach does not run'
        exit 1
    fi

    inst_multiple modprobe mount ip cat cut grep sed tr
    # Before that of 95nbd, which would take the same words for itself.
    inst_hook cmdline 89 "${moddir:?}/parse-nbdattach.sh"
    inst_hook initqueue/settled 90 "$moddir/retry-nbdattach.sh"
    inst_hook pre-pivot 90 "$moddir/keep-nbdattach.sh"
    inst_hook mount 98 "$moddir/mount-nbdattach.sh"
    inst_script "$moddir/nbdattachroot.sh" /sbin/nbdattachroot
    dracut_need_initqueue

    # An image of this name that is there is written over, and keeps its mode.
    if [[ -e ${outfile-} ]] && grep -qs 'PRIVATE KEY' /etc/nbdattach/tls/*; then
        chmod go= "$outfile"
    fi
}

# Called after `install`, if that was called.
installkernel() {
    # Also those that this machine does not need just now, which it would leave out.
    hostonly='' instmods nbd tls af_packet "${nbdattach_modules[@]}"
    # Nothing is told of one that is left out; a driver that is built in is none.
    if modprobe --set-version "$kernel" --show-depends nbd | grep -q '^insmod' &&
        [[ -z $(find "$initdir/lib/modules/$kernel/" -name 'nbd.ko*') ]]; then
        dfatal "nbdattach: the driver nbd is missing in $kernel, or was left out"
        exit 1
    fi
}
