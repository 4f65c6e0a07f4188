# SPDX-License-Identifier: GPL-2.0-or-later
"""The content of a disk: which file systems and tables it has, and whether another one is the same disk. No I/O.

May import: nothing else of ours.
"""
