# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations on a device: attach it, detach it, ask the monitor to reconnect or resize it.

May import: attached, backends, connection, content, host, kernel, monitor, own_server, protocol, relay.
"""
