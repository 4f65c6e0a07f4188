# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections to servers: sockets, TLS, and what one asks a server without the kernel; also once the kernel has the
socket.

May import: host, protocol.
"""
