# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that reconnects devices whose connection is lost, and the messages between it and commands.

May import: attached, backends, connection, host, kernel, protocol, relay.
"""
