# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens when the machine starts and stops: /etc/nbdtab, units, a root file system on NBD, an initramfs.

May import: api, attached, connection, host, kernel, monitor, operations, protocol.
"""
