# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections whose TLS the kernel carries, or a process of ours, the relay: the dialer for either, and that process.

May import: connection, host, protocol.
"""
