#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# A gzip or bzip2 file may have several parts, one after the other: "cat a.gz b.gz", and each larger file of pbzip2.
# gunzip and bunzip2 unpack all of them. nbdkit's filters "gzip" and "bzip2" 1.42.3 serve the first part as if it
# were the whole disk, and log nothing. The filters "xz" and "lzip" serve all parts. 1.48.1 does the same, and so
# does the filter "gzip" of 1.32.5.
# shellcheck source=findings/lib
. "$(dirname "$0")/lib"

make_root trixie nbdkit=1.42.3-1 libnbd-bin=1.22.2-1+b1 bzip2=1.0.8-6 pbzip2=1.1.13-1 xz-utils lzip=1.25-3
in_root >"$scratch/found" <<'END'
cd /tmp
head -c 3M /dev/zero | tr '\0' a >first
head -c 1M /dev/zero | tr '\0' b >second
served() { # NAME FILTER FILE
    echo "$1: served $(nbdkit --unix - --filter="$2" file "$3" --run 'nbdinfo --size "$uri"' 2>/dev/null) bytes"
}
for tool in gzip bzip2 xz lzip; do
    { $tool -c first; $tool -c second; } >disk.$tool
    echo "$tool: unpacked $($tool -dc <disk.$tool 2>/dev/null | wc -c) bytes"
    served $tool $tool disk.$tool
done
pbzip2 -c first >disk.pbzip2
echo "pbzip2: unpacked $(bzip2 -dc <disk.pbzip2 2>/dev/null | wc -c) bytes"
served pbzip2 bzip2 disk.pbzip2
END
cat "$scratch/found"
for tool in gzip bzip2 xz lzip; do
    expect "$tool itself" "$tool: unpacked 4194304 bytes" "$(grep "^$tool: unpacked" "$scratch/found")"
done
expect 'the filter gzip' 'gzip: served 3145728 bytes' "$(grep '^gzip: served' "$scratch/found")"
expect 'the filter bzip2' 'bzip2: served 3145728 bytes' "$(grep '^bzip2: served' "$scratch/found")"
expect 'the filter xz' 'xz: served 4194304 bytes' "$(grep '^xz: served' "$scratch/found")"
expect 'the filter lzip' 'lzip: served 4194304 bytes' "$(grep '^lzip: served' "$scratch/found")"
expect 'a file of pbzip2' 'pbzip2: unpacked 3145728 bytes' "$(grep '^pbzip2: unpacked' "$scratch/found")"
expect 'the filter bzip2 with it' 'pbzip2: served 900000 bytes' "$(grep '^pbzip2: served' "$scratch/found")"
