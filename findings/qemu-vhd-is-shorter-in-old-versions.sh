#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# The footer of a VHD image has the size of the disk twice: in bytes, and as cylinders, heads and sectors, which are often
# a little less. Which one counts depends on the program that the footer names as its creator and on QEMU's version: of an
# image of 1 GiB by VirtualBox, qemu-nbd 7.2 serves 262144 bytes less than 10.0.13 does, and so leaves out the end, where
# the backup of a GPT is. With force_size_calc=current_size 7.2 serves all of it. 11.1.3 does as 10.0.13.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

# 1 GiB with a fixed VHD's footer: 2080 cylinders, 16 heads, 63 sectors, and the last 4 bytes of data are "last".
image='
import struct

size = 1 << 30
footer = struct.pack(">8sIIQI4sI4sQQHBBI", b"conectix", 2, 0x10000, 2**64 - 1, 0, b"vbox", 0x40003, b"Wi2k", size, size, 2080, 16, 63, 2)
footer += struct.pack(">I16sx", 0, bytes(range(16)))
footer = footer.ljust(512, bytes(1))
footer = footer[:64] + struct.pack(">I", ~sum(footer) & 0xFFFFFFFF) + footer[68:]
with open("/tmp/image", "wb") as file:
    file.seek(size - 4)
    file.write(b"last" + footer)
'
served() { # NAME OPTION...
    name=$1
    shift
    in_root <<END
cat >/tmp/image.py <<'PY'
$image
PY
python3 /tmp/image.py
rm -f /tmp/socket
qemu-nbd --socket=/tmp/socket --persistent --read-only $* &
until [ -S /tmp/socket ]; do sleep 0.1; done
echo "$name: \$(nbdinfo --size 'nbd+unix:///?socket=/tmp/socket') \$(nbdcopy 'nbd+unix:///?socket=/tmp/socket' - | tail -c 4 | tr '\\0' 0)"
END
}
by_name='--format=vpc /tmp/image'
make_root bookworm qemu-utils=1:7.2+dfsg-7+deb12u18+b3 libnbd-bin=1.14.2-1 python3-minimal
expect 'size and last bytes, qemu-nbd 7.2' '7.2: 1073479680 0000' "$(served 7.2 "$by_name")"
expect 'with current_size' '7.2: 1073741824 last' \
    "$(served 7.2 --image-opts driver=vpc,force_size_calc=current_size,file.filename=/tmp/image)"
rm -rf --one-file-system "$root"
make_root trixie qemu-utils=1:10.0.13+ds-0+deb13u1 libnbd-bin=1.22.2-1+b1 python3-minimal
expect 'qemu-nbd 10.0.13' '10.0.13: 1073741824 last' "$(served 10.0.13 "$by_name")"
