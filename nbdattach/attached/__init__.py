# SPDX-License-Identifier: GPL-2.0-or-later
"""What is attached: the state files in /run, users of a device, status, and whether an export is the same one.

May import: host, kernel, protocol.
"""
