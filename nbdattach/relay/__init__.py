# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay, a process that encrypts if the kernel cannot; and the dialer, which chooses kernel or relay.

May import: connection, host, protocol.
"""
