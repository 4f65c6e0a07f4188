# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections with TLS in the kernel or in a process of ours, the relay: the dialer for both, and that process.

May import: connection, host, protocol.
"""
