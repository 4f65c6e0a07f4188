# SPDX-License-Identifier: GPL-2.0-or-later
"""Attachments: the state files in /run, users of a device, status, and whether an export still fits.

May import: content, host, kernel, own_server, protocol.
"""
