# SPDX-License-Identifier: GPL-2.0-or-later
"""Start and stop of the machine: /etc/nbdtab, units, a root file system on NBD, an initramfs.

May import: api, attached, connection, host, kernel, monitor, operations, own_server, protocol.
"""
